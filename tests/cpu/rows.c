// SPDX-License-Identifier: MIT
// Every instruction there is against the table of those that are executed: the opcode maps are walked
// with every prefix that selects an instruction, and what Zydis decodes must have a row, or belong to an
// instruction set that no guest is offered.
#include "fixture.h"

#include "cpu/jit_translate.h"

// Sets of which guests get nothing: their CPUID bits are never offered.
static const char *const not_offered[] = {
	"VMFUNC", "XOP", "FMA4", "TBM", "LWP", "AMD3DNOW", "SSE4A", "SVM", "VTX", "SGX", "SGX_ENCLV",
	"SMX", "RTM", "MPX", "KEYLOCKER", "KEYLOCKER_WIDE", "UINTR", "HRESET", "PT", "TDX", "SNP", "PADLOCK_ACE",
	"PADLOCK_PHE", "PADLOCK_PMM", "PADLOCK_RNG", "KNC", "ENQCMD", "WAITPKG", "INVLPGB", "AMD_INVLPGB", "RDPRU", "CLZERO",
	"MCOMMIT", "PCONFIG", "TSX_LDTRK", "PBNDKB", "VIA_PADLOCK_AES", "AVX512", "GEODE",
};

static bool offered(const char *set)
{
	for (unsigned i = 0; i < sizeof(not_offered) / sizeof(not_offered[0]); i++)
		if (!strncmp(set, not_offered[i], strlen(not_offered[i])))
			return false;
	return true;
}

static u8 seen_mnemonic[ZYDIS_MNEMONIC_MAX_VALUE + 1];
static unsigned instructions, missing;

static void look(ZydisDecoder *decoder, const u8 *bytes)
{
	ZydisDecodedInstruction zi;
	ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];
	const char *set;

	if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(decoder, bytes, 15, &zi, op)))
		return;
	if (seen_mnemonic[zi.mnemonic] & 1)
		return;
	set = ZydisISASetGetString(zi.meta.isa_set);
	if (insn_row_of(&zi)) {
		instructions += !seen_mnemonic[zi.mnemonic];
		seen_mnemonic[zi.mnemonic] |= 2;
		return;
	}
	if (!offered(set))
		return;
	seen_mnemonic[zi.mnemonic] |= 1;
	missing++;
	printf("# no row: %s (%s, %s)\n", ZydisMnemonicGetString(zi.mnemonic), set, ZydisISAExtGetString(zi.meta.isa_ext));
}

// ModRM values that select what an opcode means: register and memory, each /n.
static void walk(ZydisDecoder *decoder, u8 *bytes, unsigned at)
{
	for (unsigned modrm = 0; modrm < 256; modrm++) {
		unsigned mod = modrm >> 6;

		if (mod == 1 || mod == 2)
			continue;
		bytes[at] = modrm;
		look(decoder, bytes);
	}
}

static void legacy(ZydisDecoder *decoder, bool wide_mode)
{
	static const u8 prefixes[] = { 0, 0x66, 0xf2, 0xf3 };

	for (unsigned map = 0; map < 4; map++)
		for (unsigned p = 0; p < 4; p++)
			for (unsigned rex = 0; rex <= wide_mode; rex++)
				for (unsigned opcode = 0; opcode < 256; opcode++) {
					u8 bytes[32] = { 0 };
					unsigned n = 0;

					if (prefixes[p])
						bytes[n++] = prefixes[p];
					if (rex)
						bytes[n++] = 0x48;
					if (map)
						bytes[n++] = 0x0f;
					if (map >= 2)
						bytes[n++] = map == 2 ? 0x38 : 0x3a;
					bytes[n++] = opcode;
					walk(decoder, bytes, n);
				}
}

static void vex(ZydisDecoder *decoder)
{
	for (unsigned map = 1; map < 4; map++)
		for (unsigned rest = 0; rest < 16; rest++)
			for (unsigned vvvv = 0; vvvv < 2; vvvv++)
				for (unsigned opcode = 0; opcode < 256; opcode++) {
					// W, L, pp
					u8 bytes[32] = { 0xc4, 0xe0 | map, (rest >> 3) << 7 | (vvvv ? 0x78 : 0x60) | (rest & 7), opcode };

					walk(decoder, bytes, 4);
				}
}

int main(void)
{
	ZydisDecoder decoder;

	fixture_reset();
	ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
	legacy(&decoder, true);
	vex(&decoder);
	ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32);
	legacy(&decoder, false);
	ok(instructions > 1000, "%u instructions have rows", instructions);
	is(missing, 0, "and none that a guest may be offered is without");
	return done_testing();
}
