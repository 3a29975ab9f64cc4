// SPDX-License-Identifier: MIT
// Which instructions there are, and how each is executed. Rows by mnemonic come from the files that
// implement them; what is copied is listed here, for vector and bit instructions by instruction set.
// This list is the security boundary of the translator: a copied instruction touches only renamed
// registers, vector and x87 registers, flags, and memory the translator has checked.
#include "cpu/jit_translate.h"

#define M(name) ZYDIS_MNEMONIC_##name
#define COPY(name) { M(name), INSN_COPY, 0, 0, NULL }
#define COPY_F(name, feature) { M(name), INSN_COPY, 0, FEATURE_##feature, NULL }
#define COPY_X87(name) { M(name), INSN_COPY, INSN_FPU, FEATURE_CMOV, NULL }
#define GEN(name) { M(name), INSN_GEN, 0, 0, NULL }
#define GEN_F(name, feature) { M(name), INSN_GEN, 0, FEATURE_##feature, NULL }

const struct insn_row rows_copy[] = {
	COPY(ADC), COPY(ADD), COPY(AND), COPY(BSF), COPY(BSR), COPY(BSWAP), COPY(CBW), COPY(CDQ),
	COPY(CDQE), COPY(CLC), COPY(CMC), COPY(STC), COPY(CMP), COPY(CMPXCHG), COPY_F(CMPXCHG8B, CX8),
	COPY_F(CMPXCHG16B, CX16), COPY(CQO), COPY(CWD), COPY(CWDE), COPY(DEC), COPY(DIV), COPY(IDIV),
	COPY(IMUL), COPY(INC), COPY(MOV), COPY(MOVSX), COPY(MOVSXD), COPY(MOVZX), COPY(MUL), COPY(NEG),
	COPY(NOT), COPY(OR), COPY(RCL), COPY(RCR), COPY(ROL), COPY(ROR), COPY(SAR), COPY(SBB),
	COPY(SHL), COPY(SHLD), COPY(SHR), COPY(SHRD), COPY(SUB), COPY(TEST), COPY(XADD), COPY(XCHG),
	COPY(XOR), COPY(BT), COPY(BTC), COPY(BTR), COPY(BTS), COPY(PAUSE), COPY(LFENCE),
	COPY(MFENCE), COPY(SFENCE), COPY_F(MOVBE, MOVBE), COPY_F(MOVNTI, SSE2),
	COPY(SETB), COPY(SETBE), COPY(SETL), COPY(SETLE), COPY(SETNB), COPY(SETNBE), COPY(SETNL),
	COPY(SETNLE), COPY(SETNO), COPY(SETNP), COPY(SETNS), COPY(SETNZ), COPY(SETO), COPY(SETP),
	COPY(SETS), COPY(SETZ), COPY_F(CMOVB, CMOV), COPY_F(CMOVBE, CMOV), COPY_F(CMOVL, CMOV),
	COPY_F(CMOVLE, CMOV), COPY_F(CMOVNB, CMOV), COPY_F(CMOVNBE, CMOV), COPY_F(CMOVNL, CMOV),
	COPY_F(CMOVNLE, CMOV), COPY_F(CMOVNO, CMOV), COPY_F(CMOVNP, CMOV), COPY_F(CMOVNS, CMOV),
	COPY_F(CMOVNZ, CMOV), COPY_F(CMOVO, CMOV), COPY_F(CMOVP, CMOV), COPY_F(CMOVS, CMOV),
	COPY_F(CMOVZ, CMOV), COPY_F(ADCX, ADX), COPY_F(ADOX, ADX), COPY_F(CRC32, SSE4_2),
	COPY_F(LZCNT, ABM), COPY_F(TZCNT, BMI1), COPY_F(POPCNT, POPCNT),

	COPY_X87(FCOMI), COPY_X87(FCOMIP), COPY_X87(FUCOMI), COPY_X87(FUCOMIP),
	{ M(FISTTP), INSN_COPY, INSN_FPU, FEATURE_SSE3, NULL }, // not of Zydis' X87 set

	GEN(LEA), GEN(NOP), GEN(ENDBR64), GEN(ENDBR32), GEN(PUSH), GEN(POP), GEN(CALL), GEN(RET), GEN(JMP),
	GEN(LEAVE), GEN(LOOP), GEN(LOOPE), GEN(LOOPNE), GEN(JCXZ), GEN(JECXZ), GEN(JRCXZ), GEN(CLI),
	GEN(STI), GEN_F(STAC, SMAP), GEN_F(SWAPGS, LM),
	GEN(CLD), GEN(STD), GEN(PUSHFQ), GEN(JB), GEN(JBE), GEN(JL), GEN(JLE), GEN(JNB), GEN(JNBE), GEN(JNL),
	GEN(JNLE), GEN(JNO), GEN(JNP), GEN(JNS), GEN(JNZ), GEN(JO), GEN(JP), GEN(JS), GEN(JZ),
	GEN(PREFETCH), GEN(PREFETCHNTA), GEN(PREFETCHT0), GEN(PREFETCHT1), GEN(PREFETCHT2),
	GEN(PREFETCHW), GEN(PREFETCHWT1), GEN(CLDEMOTE),
	{ 0 },
};

// Instruction sets whose computational instructions are copied as a whole. Their members that are
// not (masked moves, gathers, state images, MXCSR) have rows by mnemonic, which win.
static const struct {
	ZydisISASet set;
	u8 flags;
	u16 feature;
} copied_sets[] = {
	{ ZYDIS_ISA_SET_X87, INSN_FPU, FEATURE_FPU },
	{ ZYDIS_ISA_SET_FCMOV, INSN_FPU, FEATURE_CMOV },
	{ ZYDIS_ISA_SET_SSE3X87, INSN_FPU, FEATURE_SSE3 },
	{ ZYDIS_ISA_SET_PENTIUMMMX, INSN_FPU, FEATURE_MMX },
	{ ZYDIS_ISA_SET_SSE, INSN_SSE, FEATURE_SSE },
	{ ZYDIS_ISA_SET_SSE2, INSN_SSE, FEATURE_SSE2 },
	{ ZYDIS_ISA_SET_SSE2MMX, INSN_SSE, FEATURE_SSE2 },
	{ ZYDIS_ISA_SET_SSE3, INSN_SSE, FEATURE_SSE3 },
	{ ZYDIS_ISA_SET_SSE4, INSN_SSE, FEATURE_SSE4_1 },
	{ ZYDIS_ISA_SET_SSE42, INSN_SSE, FEATURE_SSE4_2 },
	{ ZYDIS_ISA_SET_SSEMXCSR, INSN_SSE, FEATURE_SSE },
	{ ZYDIS_ISA_SET_SSSE3, INSN_SSE, FEATURE_SSSE3 },
	{ ZYDIS_ISA_SET_SSSE3MMX, INSN_SSE, FEATURE_SSSE3 },
	{ ZYDIS_ISA_SET_PCLMULQDQ, INSN_SSE, FEATURE_PCLMULQDQ },
	{ ZYDIS_ISA_SET_AES, INSN_SSE, FEATURE_AES },
	{ ZYDIS_ISA_SET_SHA, INSN_SSE, FEATURE_SHA },
	{ ZYDIS_ISA_SET_AVX, INSN_AVX, FEATURE_AVX },
	{ ZYDIS_ISA_SET_AVX2, INSN_AVX, FEATURE_AVX2 },
	{ ZYDIS_ISA_SET_AVXAES, INSN_AVX, FEATURE_AVX },
	{ ZYDIS_ISA_SET_FMA, INSN_AVX, FEATURE_FMA },
	{ ZYDIS_ISA_SET_F16C, INSN_AVX, FEATURE_F16C },
	{ ZYDIS_ISA_SET_VAES, INSN_AVX, FEATURE_VAES },
	{ ZYDIS_ISA_SET_VPCLMULQDQ, INSN_AVX, FEATURE_VPCLMULQDQ },
	{ ZYDIS_ISA_SET_GFNI, INSN_SSE, FEATURE_GFNI },
	{ ZYDIS_ISA_SET_AVX_GFNI, INSN_AVX, FEATURE_GFNI },
	{ ZYDIS_ISA_SET_AVX_VNNI, INSN_AVX, FEATURE_AVX_VNNI },
	{ ZYDIS_ISA_SET_BMI1, 0, FEATURE_BMI1 },
	{ ZYDIS_ISA_SET_BMI2, 0, FEATURE_BMI2 },
};

// Members of those sets that touch memory or state in ways a copy must not; their handlers in C have
// rows, and without one they are #UD.
static const u16 never_copied[] = {
	M(MASKMOVQ), M(MASKMOVDQU), M(VMASKMOVDQU), M(VMASKMOVPS), M(VMASKMOVPD), M(VPMASKMOVD),
	M(VPMASKMOVQ), M(FNSAVE), M(FRSTOR), M(FNSTENV), M(FLDENV), M(FXSAVE), M(FXRSTOR),
};

static const struct insn_row *copied[ZYDIS_MNEMONIC_MAX_VALUE + 1]; // or generated
static const struct insn_row *in_c[ZYDIS_MNEMONIC_MAX_VALUE + 1];
static struct insn_row by_set[ZYDIS_ISA_SET_MAX_VALUE + 1];
static const struct insn_row *mov_segment, *mov_system;

static void add(const struct insn_row **table, const struct insn_row *row)
{
	for (; row->mnemonic; row++)
		table[row->mnemonic] = row;
}

__attribute__((constructor)) static void collect_rows(void)
{
	add(copied, rows_copy);
	add(in_c, rows_segment);
	mov_segment = in_c[M(MOV)];
	add(in_c, rows_system);
	mov_system = in_c[M(MOV)];
	add(in_c, rows_transfer);
	add(in_c, rows_cet);
	add(in_c, rows_string);
	add(in_c, rows_xsave);
	add(in_c, rows_amx);
	add(in_c, rows_misc);
	for (unsigned i = 0; i < sizeof(copied_sets) / sizeof(copied_sets[0]); i++)
		by_set[copied_sets[i].set] = (struct insn_row){ .kind = INSN_COPY, .flags = copied_sets[i].flags,
								.feature = copied_sets[i].feature };
}

const struct insn_row *insn_row_in_c(u16 mnemonic)
{
	return in_c[mnemonic];
}

// NULL: #UD.
const struct insn_row *insn_row_of(const ZydisDecodedInstruction *zi)
{
	const struct insn_row *row = copied[zi->mnemonic];

	// MOV from and to segment, control and debug registers is not the MOV that is copied.
	if (zi->mnemonic == M(MOV)) {
		if (zi->opcode_map == ZYDIS_OPCODE_MAP_0F)
			return mov_system;
		if (zi->opcode == 0x8c || zi->opcode == 0x8e)
			return mov_segment;
	}
	if (row)
		return row;
	// Movements between general registers and string moves share names with vector instructions.
	if (in_c[zi->mnemonic] && !(zi->mnemonic == M(MOVSD) && zi->meta.isa_ext != ZYDIS_ISA_EXT_BASE) &&
	    !(zi->mnemonic == M(CMPSD) && zi->meta.isa_ext != ZYDIS_ISA_EXT_BASE))
		return in_c[zi->mnemonic];
	for (unsigned i = 0; i < sizeof(never_copied) / sizeof(never_copied[0]); i++)
		if (never_copied[i] == zi->mnemonic)
			return NULL;
	row = &by_set[zi->meta.isa_set];
	return row->kind && zi->encoding != ZYDIS_INSTRUCTION_ENCODING_EVEX ? row : NULL;
}
