// SPDX-License-Identifier: MIT
// Migration of a guest's CET whose VMM does not know of it (see cpuid_effective.c).
//
// Such a VMM saves the registers it knows. Control registers, XSS and extended state are among them, the
// CET MSRs and SSP are not. (Its resets clear them: see is_client_reset() in sregs.c.) So they travel in
// MSRs that a VMM saves without a look at what they mean, and that mean nothing as long as no machine check
// was logged: IA32_MCi_ADDR and IA32_MCi_MISC of banks 2 to 6. The host reads them there, behind a word that
// says so, and what it writes back with that word goes to the CET registers. The guest's own view of these
// banks is unaffected, except that what it may have written to them itself does not travel.
//
// The VMM writes back what it has read at other times, too: nothing changes then.
#include "cpu/msr.h"
#include "cpu/system.h"
#include "kvm/guest_fpu.h"
#include "kvm/kvm.h"

#define FIRST_BANK 2
#define BANKS 5
#define MAGIC 0x6b7665744345ull // upper 48 bits of the first word
#define STATUS_VALID (1ull << 63)

static const u32 carried[] = { MSR_U_CET, MSR_S_CET, MSR_PL0_SSP, MSR_PL0_SSP + 1, MSR_PL0_SSP + 2, MSR_PL0_SSP + 3,
			       MSR_INT_SSP_TAB, MSR_KVM_INTERNAL_GUEST_SSP };
#define CARRIED (sizeof(carried) / sizeof(carried[0]))
_Static_assert(1 + CARRIED <= HIDDEN_CET_WORDS && HIDDEN_CET_WORDS == 2 * BANKS, "ADDR and MISC of five banks");

static u64 get(struct vcpu *vcpu, u32 msr)
{
	u64 value = 0;

	if (guest_fpu_holds_msr(msr))
		guest_fpu_load(vcpu);
	// Without SHSTK some are not there.
	return cpu_rdmsr(vcpu->cpu, msr, &value, BY_HOST) ? 0 : value;
}

static void set(struct vcpu *vcpu, u32 msr, u64 value)
{
	if (guest_fpu_holds_msr(msr))
		guest_fpu_load(vcpu);
	cpu_wrmsr(vcpu->cpu, msr, value, BY_HOST);
}

// Which word an MSR carries, or -1.
static int word_of(u32 msr)
{
	u32 n = msr - (MSR_MC0_CTL + 4 * FIRST_BANK);

	return n < 4 * BANKS && n % 4 >= 2 ? (int)(n / 4 * 2 + n % 2) : -1;
}

static u32 msr_of(unsigned word)
{
	return MSR_MC0_CTL + 4 * (FIRST_BANK + word / 2) + 2 + word % 2;
}

static bool machine_check_logged(struct vcpu *vcpu)
{
	for (unsigned bank = FIRST_BANK; bank < FIRST_BANK + BANKS; bank++)
		if (get(vcpu, MSR_MC0_CTL + 4 * bank + 1) & STATUS_VALID)
			return true;
	return false;
}

static bool banks_exist(struct vcpu *vcpu)
{
	u64 value;

	return !cpu_rdmsr(vcpu->cpu, msr_of(HIDDEN_CET_WORDS - 1), &value, BY_HOST);
}

static u64 first_word(const u64 values[CARRIED])
{
	u64 sum = 0;

	for (unsigned i = 0; i < CARRIED; i++)
		sum = sum * 31 + (values[i] ^ values[i] >> 16 ^ values[i] >> 32 ^ values[i] >> 48);
	return MAGIC << 16 | (u16)sum;
}

bool hidden_cet_read(struct vcpu *vcpu, u32 msr, u64 *value)
{
	u64 values[CARRIED];
	int word = word_of(msr);

	if (word < 0 || !banks_exist(vcpu) || machine_check_logged(vcpu))
		return false;
	for (unsigned i = 0; i < CARRIED; i++)
		values[i] = get(vcpu, carried[i]);
	*value = !word ? first_word(values) : word <= (int)CARRIED ? values[word - 1] : 0;
	return true;
}

bool hidden_cet_write(struct vcpu *vcpu, u32 msr, u64 value)
{
	u64 *words = vcpu->hidden_cet_words;
	int word = word_of(msr);

	if (word < 0 || !banks_exist(vcpu))
		return false;
	words[word] = value;
	// They come in ascending order; what the first says holds for all.
	if (words[0] >> 16 != MAGIC)
		return false;
	if (word == HIDDEN_CET_WORDS - 1 && words[0] == first_word(&words[1])) {
		// A processor outside protected mode has no CET state: this is what it had before its reset.
		if (vcpu->cpu->cr0 & CR0_PE)
			for (unsigned i = 0; i < CARRIED; i++)
				set(vcpu, carried[i], words[1 + i]);
		words[0] = 0;
	}
	return true;
}
