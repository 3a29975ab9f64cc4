// SPDX-License-Identifier: MIT
// Which instructions are compared with the host's silicon, in classes; and which are not, and why.
// Only instructions that CPL 3 may execute, whose result depends on nothing but the compared state.
#include "lockstep.h"

#include <stdio.h>
#include <string.h>

enum { C_ALU, C_MULDIV, C_SHIFT, C_BIT, C_BMI, C_MOV, C_ATOMIC, C_CMOV, C_STACK, C_LEA, C_FLAG, C_CONVERT,
       C_DECIMAL, C_BRANCH, C_STRING, C_X87, C_X87ENV, C_MMX, C_SSE, C_SSE2, C_SSE3, C_SSE4, C_CRYPTO, C_AVX,
       C_AVX2, C_GATHER, C_FMA, C_F16C, C_FXSAVE, C_HINT, C_SSE4A, C_TRAP, C_PRIVILEGED, C_POPF, C_AVX512 };

const struct instruction_class classes[] = {
	[C_ALU] = { "alu", "ADD..CMP, AND, TEST, INC, NEG, ADCX", 7, FLAVOUR_INT },
	[C_MULDIV] = { "muldiv", "MUL, IMUL, DIV, IDIV", 7, FLAVOUR_INT },
	[C_SHIFT] = { "shift", "shifts, rotates, double shifts", 7, FLAVOUR_INT },
	[C_BIT] = { "bit", "BT.., BSF, BSR, POPCNT, LZCNT, TZCNT", 7, FLAVOUR_INT },
	[C_BMI] = { "bmi", "BMI1, BMI2, ADX", 7, FLAVOUR_INT },
	[C_MOV] = { "mov", "MOV, MOVZX, MOVBE, BSWAP, XCHG", 7, FLAVOUR_INT },
	[C_ATOMIC] = { "atomic", "LOCK forms, CMPXCHG, CMPXCHG8B/16B, XADD", 7, FLAVOUR_INT },
	[C_CMOV] = { "cmov", "CMOVcc, SETcc", 7, FLAVOUR_INT },
	[C_STACK] = { "stack", "PUSH, POP, PUSHA, PUSHF, ENTER, LEAVE", 3, FLAVOUR_INT },
	[C_LEA] = { "lea", "LEA, XLAT, CRC32", 7, FLAVOUR_INT },
	[C_FLAG] = { "flag", "CLC, STC, CMC, CLD, STD, LAHF, SAHF", 7, FLAVOUR_INT },
	[C_CONVERT] = { "convert", "CBW, CWD and their kin", 7, FLAVOUR_INT },
	[C_DECIMAL] = { "decimal", "AAA, AAD, AAM, AAS, DAA, DAS, SALC", 2, FLAVOUR_INT },
	[C_BRANCH] = { "branch", "near JMP, Jcc, CALL, RET, LOOP", 7, FLAVOUR_INT },
	[C_STRING] = { "string", "MOVS, CMPS, STOS, LODS, SCAS", 7, FLAVOUR_INT },
	[C_X87] = { "x87", "all of x87 but environments", 3, FLAVOUR_X87 },
	[C_X87ENV] = { "x87env", "FNSTENV, FLDENV, FNSAVE, FRSTOR", 3, FLAVOUR_X87 },
	[C_MMX] = { "mmx", "MMX and its SSE extensions", 3, FLAVOUR_INT },
	[C_SSE] = { "sse", "SSE", 3, FLAVOUR_FLOAT },
	[C_SSE2] = { "sse2", "SSE2", 3, FLAVOUR_FLOAT },
	[C_SSE3] = { "sse3", "SSE3, SSSE3", 3, FLAVOUR_FLOAT },
	[C_SSE4] = { "sse4", "SSE4.1, SSE4.2", 3, FLAVOUR_FLOAT },
	[C_CRYPTO] = { "crypto", "AES, PCLMULQDQ, SHA, VAES, VPCLMULQDQ", 3, FLAVOUR_INT },
	[C_AVX] = { "avx", "AVX", 3, FLAVOUR_FLOAT },
	[C_AVX2] = { "avx2", "AVX2 but gathers", 3, FLAVOUR_FLOAT },
	[C_GATHER] = { "gather", "gathers, masked moves", 3, FLAVOUR_INT },
	[C_FMA] = { "fma", "FMA", 3, FLAVOUR_FLOAT },
	[C_F16C] = { "f16c", "F16C", 3, FLAVOUR_FLOAT },
	[C_FXSAVE] = { "fxsave", "FXSAVE, FXRSTOR, LDMXCSR, STMXCSR", 3, FLAVOUR_X87 },
	[C_HINT] = { "hint", "NOPs, fences, prefetches, CLFLUSH, PAUSE, ENDBR", 3, FLAVOUR_INT },
	[C_SSE4A] = { "sse4a", "SSE4A", 0, FLAVOUR_FLOAT },
	[C_TRAP] = { "trap", "INT3, INTO, BOUND, UD0, UD1, UD2", 3, FLAVOUR_INT },
	[C_PRIVILEGED] = { "privileged", "what must raise #GP at CPL 3", 3, FLAVOUR_INT },
	[C_POPF] = { "popf", "POPF, with TF, NT, DF, ID", 3, FLAVOUR_INT },
	[C_AVX512] = { "avx512", "EVEX and mask instructions", 3, FLAVOUR_FLOAT },
};
const unsigned class_count = sizeof(classes) / sizeof(classes[0]);

// Instructions that the host executes in a way that cannot be compared.
static const struct {
	ZydisMnemonic mnemonic;
	const char *why;
} excluded_mnemonics[] = {
#define NO(name, why) { ZYDIS_MNEMONIC_##name, why }
	NO(SYSCALL, "calls the host's kernel"), NO(SYSENTER, "calls the host's kernel"),
	NO(SYSRET, "privileged; #UD on AMD in some modes"), NO(SYSEXIT, "privileged; #UD on AMD in some modes"),
	NO(INT, "vectors with DPL 3 differ, 0x80 calls the host's kernel"),
	NO(IRET, "far transfer between the host's segments"), NO(IRETD, "far transfer between the host's segments"),
	NO(IRETQ, "far transfer between the host's segments"),
	NO(RDTSC, "time"), NO(RDTSCP, "time, and the host's processor number"), NO(RDPMC, "counters"),
	NO(RDPRU, "counters; AMD only"), NO(CPUID, "the guest has its own"), NO(RDRAND, "random"),
	NO(RDSEED, "random"), NO(RDPID, "the host's processor number"), NO(XGETBV, "host XCR0"),
	NO(LAR, "reads the host's GDT"), NO(LSL, "reads the host's GDT"), NO(VERR, "reads the host's GDT"),
	NO(VERW, "reads the host's GDT"), NO(ARPL, "compared in guest tests"),
	NO(SGDT, "UMIP: emulated by the host's kernel"), NO(SIDT, "UMIP: emulated by the host's kernel"),
	NO(SLDT, "UMIP: emulated by the host's kernel"), NO(STR, "UMIP: emulated by the host's kernel"),
	NO(SMSW, "UMIP: emulated by the host's kernel"),
	NO(LDS, "segment load"), NO(LES, "segment load"), NO(LFS, "segment load"), NO(LGS, "segment load"),
	NO(LSS, "segment load"), NO(RDFSBASE, "FS is the host's thread pointer"),
	NO(WRFSBASE, "FS is the host's thread pointer"), NO(RDGSBASE, "compared in guest tests"),
	NO(WRGSBASE, "compared in guest tests"), NO(CLZERO, "AMD only"),
	NO(INT1, "virtual hosts report it before the instruction"),
#undef NO
};

// Feature bits the host must have for an extension to be tested.
static bool host_has(ZydisISAExt ext)
{
	switch (ext) {
	case ZYDIS_ISA_EXT_BASE: case ZYDIS_ISA_EXT_LONGMODE: case ZYDIS_ISA_EXT_X87: case ZYDIS_ISA_EXT_MMX:
	case ZYDIS_ISA_EXT_SSE: case ZYDIS_ISA_EXT_SSE2: case ZYDIS_ISA_EXT_SSE3: case ZYDIS_ISA_EXT_SSSE3:
	case ZYDIS_ISA_EXT_SSE4: case ZYDIS_ISA_EXT_AVX: case ZYDIS_ISA_EXT_AVX2:
	case ZYDIS_ISA_EXT_AVX2GATHER: case ZYDIS_ISA_EXT_BMI1: case ZYDIS_ISA_EXT_BMI2:
	case ZYDIS_ISA_EXT_LZCNT: case ZYDIS_ISA_EXT_MOVBE: case ZYDIS_ISA_EXT_PAUSE: case ZYDIS_ISA_EXT_CLFSH:
	case ZYDIS_ISA_EXT_F16C: case ZYDIS_ISA_EXT_FMA: case ZYDIS_ISA_EXT_AMD3DNOW_PREFETCH:
	case ZYDIS_ISA_EXT_CET:
		return true; // x86-64-v3 is what the product needs anyhow
	default:
		break;
	}
	static u32 leaf7_ebx, leaf7_ecx, leaf1_ecx, leaf81_ecx, leaf7_1_eax;
	static bool read;
	if (!read) {
		u32 a, b, c, d;
		__asm__("cpuid" : "=a"(a), "=b"(leaf7_ebx), "=c"(leaf7_ecx), "=d"(d) : "a"(7), "c"(0));
		__asm__("cpuid" : "=a"(leaf7_1_eax), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(1));
		__asm__("cpuid" : "=a"(a), "=b"(b), "=c"(leaf1_ecx), "=d"(d) : "a"(1), "c"(0));
		__asm__("cpuid" : "=a"(a), "=b"(b), "=c"(leaf81_ecx), "=d"(d) : "a"(0x80000001), "c"(0));
		read = true;
	}
	switch (ext) {
	case ZYDIS_ISA_EXT_AES: case ZYDIS_ISA_EXT_AVXAES: return leaf1_ecx >> 25 & 1;
	case ZYDIS_ISA_EXT_PCLMULQDQ: return leaf1_ecx >> 1 & 1;
	case ZYDIS_ISA_EXT_SHA: return leaf7_ebx >> 29 & 1;
	case ZYDIS_ISA_EXT_ADOX_ADCX: return leaf7_ebx >> 19 & 1;
	case ZYDIS_ISA_EXT_CLFLUSHOPT: return leaf7_ebx >> 23 & 1;
	case ZYDIS_ISA_EXT_CLWB: return leaf7_ebx >> 24 & 1;
	case ZYDIS_ISA_EXT_VAES: return leaf7_ecx >> 9 & 1;
	case ZYDIS_ISA_EXT_VPCLMULQDQ: return leaf7_ecx >> 10 & 1;
	case ZYDIS_ISA_EXT_GFNI: return leaf7_ecx >> 8 & 1;
	case ZYDIS_ISA_EXT_AVX_VNNI: return leaf7_1_eax >> 4 & 1;
	case ZYDIS_ISA_EXT_SSE4A: return leaf81_ecx >> 6 & 1;
	case ZYDIS_ISA_EXT_AVX512EVEX: case ZYDIS_ISA_EXT_AVX512VEX: return leaf7_ebx >> 16 & 1;
	default: return false;
	}
}

static bool is_privileged(ZydisMnemonic m)
{
	switch (m) {
	case ZYDIS_MNEMONIC_HLT: case ZYDIS_MNEMONIC_CLI: case ZYDIS_MNEMONIC_STI: case ZYDIS_MNEMONIC_IN:
	case ZYDIS_MNEMONIC_OUT: case ZYDIS_MNEMONIC_INSB: case ZYDIS_MNEMONIC_INSD: case ZYDIS_MNEMONIC_INSW:
	case ZYDIS_MNEMONIC_OUTSB: case ZYDIS_MNEMONIC_OUTSD: case ZYDIS_MNEMONIC_OUTSW:
	case ZYDIS_MNEMONIC_LGDT: case ZYDIS_MNEMONIC_LIDT: case ZYDIS_MNEMONIC_LLDT: case ZYDIS_MNEMONIC_LTR:
	case ZYDIS_MNEMONIC_LMSW: case ZYDIS_MNEMONIC_INVLPG: case ZYDIS_MNEMONIC_WBINVD:
	case ZYDIS_MNEMONIC_INVD: case ZYDIS_MNEMONIC_RDMSR: case ZYDIS_MNEMONIC_WRMSR:
	case ZYDIS_MNEMONIC_CLTS: case ZYDIS_MNEMONIC_SWAPGS:
		return true;
	default:
		return false;
	}
}

static int classify_base(const ZydisDecodedInstruction *insn)
{
	switch (insn->mnemonic) {
	case ZYDIS_MNEMONIC_MUL: case ZYDIS_MNEMONIC_IMUL: case ZYDIS_MNEMONIC_DIV: case ZYDIS_MNEMONIC_IDIV:
		return C_MULDIV;
	case ZYDIS_MNEMONIC_LEA: case ZYDIS_MNEMONIC_XLAT:
		return C_LEA;
	case ZYDIS_MNEMONIC_POPF: case ZYDIS_MNEMONIC_POPFD: case ZYDIS_MNEMONIC_POPFQ:
		return C_POPF;
	case ZYDIS_MNEMONIC_ENTER: case ZYDIS_MNEMONIC_LEAVE:
		return C_STACK;
	case ZYDIS_MNEMONIC_CMPXCHG: case ZYDIS_MNEMONIC_CMPXCHG8B: case ZYDIS_MNEMONIC_CMPXCHG16B:
	case ZYDIS_MNEMONIC_XADD:
		return C_ATOMIC;
	case ZYDIS_MNEMONIC_INT3: case ZYDIS_MNEMONIC_INTO:
	case ZYDIS_MNEMONIC_BOUND: case ZYDIS_MNEMONIC_UD0: case ZYDIS_MNEMONIC_UD1: case ZYDIS_MNEMONIC_UD2:
		return C_TRAP;
	case ZYDIS_MNEMONIC_SALC:
		return C_DECIMAL;
	case ZYDIS_MNEMONIC_POPCNT:
		return C_BIT;
	case ZYDIS_MNEMONIC_EMMS:
		return C_MMX;
	default:
		break;
	}
	switch (insn->meta.category) {
	case ZYDIS_CATEGORY_BINARY: case ZYDIS_CATEGORY_LOGICAL: return C_ALU;
	case ZYDIS_CATEGORY_SHIFT: case ZYDIS_CATEGORY_ROTATE: return C_SHIFT;
	case ZYDIS_CATEGORY_BITBYTE: return C_BIT;
	case ZYDIS_CATEGORY_DATAXFER: return C_MOV;
	case ZYDIS_CATEGORY_SEMAPHORE: return C_ATOMIC;
	case ZYDIS_CATEGORY_CMOV: case ZYDIS_CATEGORY_SETCC: return C_CMOV;
	case ZYDIS_CATEGORY_PUSH: case ZYDIS_CATEGORY_POP: return C_STACK;
	case ZYDIS_CATEGORY_FLAGOP: return C_FLAG;
	case ZYDIS_CATEGORY_CONVERT: return C_CONVERT;
	case ZYDIS_CATEGORY_DECIMAL: return C_DECIMAL;
	case ZYDIS_CATEGORY_COND_BR: case ZYDIS_CATEGORY_UNCOND_BR: case ZYDIS_CATEGORY_CALL:
	case ZYDIS_CATEGORY_RET: return C_BRANCH;
	case ZYDIS_CATEGORY_STRINGOP: return C_STRING;
	case ZYDIS_CATEGORY_NOP: case ZYDIS_CATEGORY_WIDENOP: case ZYDIS_CATEGORY_PREFETCH: return C_HINT;
	default: return -1;
	}
}

static int classify_vector(const ZydisDecodedInstruction *insn)
{
	switch (insn->mnemonic) {
	case ZYDIS_MNEMONIC_FXSAVE: case ZYDIS_MNEMONIC_FXSAVE64: case ZYDIS_MNEMONIC_FXRSTOR:
	case ZYDIS_MNEMONIC_FXRSTOR64: case ZYDIS_MNEMONIC_LDMXCSR: case ZYDIS_MNEMONIC_STMXCSR:
	case ZYDIS_MNEMONIC_VLDMXCSR: case ZYDIS_MNEMONIC_VSTMXCSR:
		return C_FXSAVE;
	case ZYDIS_MNEMONIC_FNSAVE: case ZYDIS_MNEMONIC_FRSTOR: case ZYDIS_MNEMONIC_FNSTENV:
	case ZYDIS_MNEMONIC_FLDENV:
		return C_X87ENV;
	case ZYDIS_MNEMONIC_CRC32:
		return C_LEA;
	case ZYDIS_MNEMONIC_POPCNT:
		return C_BIT;
	case ZYDIS_MNEMONIC_MASKMOVQ: case ZYDIS_MNEMONIC_MASKMOVDQU: case ZYDIS_MNEMONIC_VMASKMOVDQU:
	case ZYDIS_MNEMONIC_VMASKMOVPS: case ZYDIS_MNEMONIC_VMASKMOVPD: case ZYDIS_MNEMONIC_VPMASKMOVD:
	case ZYDIS_MNEMONIC_VPMASKMOVQ:
		return C_GATHER;
	case ZYDIS_MNEMONIC_SFENCE: case ZYDIS_MNEMONIC_LFENCE: case ZYDIS_MNEMONIC_MFENCE:
		return C_HINT;
	default:
		break;
	}
	if (insn->meta.category == ZYDIS_CATEGORY_PREFETCH)
		return C_HINT;
	if (insn->meta.isa_set == ZYDIS_ISA_SET_SSE2MMX || insn->meta.isa_set == ZYDIS_ISA_SET_SSSE3MMX)
		return C_MMX;
	if (insn->meta.isa_set == ZYDIS_ISA_SET_SSE3X87)
		return C_X87;
	switch (insn->meta.isa_ext) {
	case ZYDIS_ISA_EXT_X87: return C_X87;
	case ZYDIS_ISA_EXT_MMX: return C_MMX;
	case ZYDIS_ISA_EXT_SSE: return C_SSE;
	case ZYDIS_ISA_EXT_SSE2: return C_SSE2;
	case ZYDIS_ISA_EXT_SSE3: case ZYDIS_ISA_EXT_SSSE3: return C_SSE3;
	case ZYDIS_ISA_EXT_SSE4: return C_SSE4;
	case ZYDIS_ISA_EXT_SSE4A: return C_SSE4A;
	case ZYDIS_ISA_EXT_AES: case ZYDIS_ISA_EXT_AVXAES: case ZYDIS_ISA_EXT_PCLMULQDQ: case ZYDIS_ISA_EXT_SHA:
	case ZYDIS_ISA_EXT_VAES: case ZYDIS_ISA_EXT_VPCLMULQDQ: case ZYDIS_ISA_EXT_GFNI: return C_CRYPTO;
	case ZYDIS_ISA_EXT_AVX: return C_AVX;
	case ZYDIS_ISA_EXT_AVX2: case ZYDIS_ISA_EXT_AVX_VNNI: return C_AVX2;
	case ZYDIS_ISA_EXT_AVX2GATHER: return C_GATHER;
	case ZYDIS_ISA_EXT_FMA: return C_FMA;
	case ZYDIS_ISA_EXT_F16C: return C_F16C;
	case ZYDIS_ISA_EXT_AVX512EVEX: case ZYDIS_ISA_EXT_AVX512VEX: return C_AVX512;
	default: return -1;
	}
}

int classify(const ZydisDecodedInstruction *insn, const ZydisDecodedOperand *op, const char **why)
{
	for (unsigned i = 0; i < sizeof(excluded_mnemonics) / sizeof(excluded_mnemonics[0]); i++)
		if (excluded_mnemonics[i].mnemonic == insn->mnemonic && excluded_mnemonics[i].why) {
			*why = excluded_mnemonics[i].why;
			return -1;
		}
	if (insn->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR) {
		*why = "far transfer between the host's segments";
		return -1;
	}
	for (unsigned i = 0; i < insn->operand_count; i++) {
		if (op[i].type != ZYDIS_OPERAND_TYPE_REGISTER)
			continue;
		ZydisRegisterClass class = ZydisRegisterGetClass(op[i].reg.value);

		if (class == ZYDIS_REGCLASS_SEGMENT && (op[i].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE)) {
			*why = "segment load";
			return -1;
		}
		// Privileged, but #UD for numbers that do not exist comes first or last by vendor.
		if (class == ZYDIS_REGCLASS_CONTROL || class == ZYDIS_REGCLASS_DEBUG ||
		    class == ZYDIS_REGCLASS_TEST) {
			*why = "control, debug or test register";
			if (insn->mnemonic == ZYDIS_MNEMONIC_MOV)
				return class != ZYDIS_REGCLASS_TEST ? C_PRIVILEGED : -1;
		}
	}
	if (insn->mnemonic == ZYDIS_MNEMONIC_NOP && insn->opcode_map == ZYDIS_OPCODE_MAP_0F &&
	    insn->opcode == 0x0d && insn->raw.modrm.mod == 3) {
		*why = "0F 0D with a register is NOP on Intel, #UD on AMD";
		return -1;
	}
	if ((insn->mnemonic == ZYDIS_MNEMONIC_VPINSRD || insn->mnemonic == ZYDIS_MNEMONIC_VPEXTRD) &&
	    insn->machine_mode != ZYDIS_MACHINE_MODE_LONG_64 && insn->raw.vex.W) {
		*why = "VEX.W outside 64-bit mode is ignored on Intel, #UD on AMD";
		return -1;
	}
	if (is_privileged(insn->mnemonic))
		return C_PRIVILEGED;
	*why = "the host lacks it, or it is no instruction of CPL 3";
	if (!host_has(insn->meta.isa_ext))
		return -1;
	if ((insn->attributes & ZYDIS_ATTRIB_HAS_LOCK) && insn->mnemonic != ZYDIS_MNEMONIC_MOV)
		return C_ATOMIC;
	switch (insn->meta.isa_ext) {
	case ZYDIS_ISA_EXT_BASE: case ZYDIS_ISA_EXT_LONGMODE:
		return classify_base(insn);
	case ZYDIS_ISA_EXT_MOVBE:
		return C_MOV;
	case ZYDIS_ISA_EXT_BMI1: case ZYDIS_ISA_EXT_BMI2: case ZYDIS_ISA_EXT_ADOX_ADCX:
		return insn->mnemonic == ZYDIS_MNEMONIC_TZCNT ? C_BIT : C_BMI;
	case ZYDIS_ISA_EXT_LZCNT:
		return C_BIT;
	case ZYDIS_ISA_EXT_PAUSE: case ZYDIS_ISA_EXT_CLFSH: case ZYDIS_ISA_EXT_CLFLUSHOPT:
	case ZYDIS_ISA_EXT_CLWB: case ZYDIS_ISA_EXT_AMD3DNOW_PREFETCH:
		return C_HINT;
	case ZYDIS_ISA_EXT_CET: // the others need CR4.CET, which the host has not
		return insn->mnemonic == ZYDIS_MNEMONIC_ENDBR64 || insn->mnemonic == ZYDIS_MNEMONIC_ENDBR32 ||
		       insn->mnemonic == ZYDIS_MNEMONIC_RDSSPD || insn->mnemonic == ZYDIS_MNEMONIC_RDSSPQ ?
			       C_HINT : -1;
	default:
		return classify_vector(insn);
	}
}

int class_by_name(const char *name)
{
	for (unsigned i = 0; i < class_count; i++)
		if (!strcmp(classes[i].name, name))
			return i;
	return -1;
}

void classes_list(void)
{
	printf("classes (64-bit mode: --mode 64, compatibility mode: --mode 32)\n");
	for (unsigned i = 0; i < class_count; i++)
		printf("  %-10s %-52s%s%s%s\n", classes[i].name, classes[i].what, classes[i].modes & 1 ? " 64" : "",
		       classes[i].modes & 2 ? " 32" : "", classes[i].modes ? "" : " by name only");
	printf("not compared with the host\n");
	for (unsigned i = 0; i < sizeof(excluded_mnemonics) / sizeof(excluded_mnemonics[0]); i++)
		if (excluded_mnemonics[i].why)
			printf("  %-10s %s\n", ZydisMnemonicGetString(excluded_mnemonics[i].mnemonic),
			       excluded_mnemonics[i].why);
	printf("  far transfers and segment loads; XSAVE family; control, debug and test registers beyond #GP\n");
}
