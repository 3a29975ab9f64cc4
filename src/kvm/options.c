// SPDX-License-Identifier: MIT
// Options of the library that KVM has no ioctl for.
#include "cetkvm/cetkvm.h"

#include "base/symbols.h"
#include "kvm/generation.h"
#include "kvm/guest_fpu.h"
#include "kvm/kvm.h"

#include <errno.h>
#include <string.h>

bool option_trace_cp, option_single_grain;

static bool two_words(const char *value, const char *no, const char *yes, bool *result)
{
	if (strcmp(value, no) && strcmp(value, yes))
		return false;
	*result = !strcmp(value, yes);
	return true;
}

__attribute__((visibility("default"))) int cetkvm_set_option(const char *name, const char *value)
{
	bool good, with_either = false;

	if (!strcmp(name, "trace-cp")) {
		good = two_words(value, "off", "on", &option_trace_cp);
	} else if (!strcmp(name, "grain")) {
		good = two_words(value, "block", "single", &option_single_grain);
	} else if (!strcmp(name, "supported-cpuid")) {
		good = !cpuid_set_supported(value);
	} else if (!strcmp(name, "host-cpuid")) {
		int result = cpuid_set_host(value);

		if (result)
			errno = -result;
		return result ? -1 : 0;
	} else if (!strcmp(name, "cpuid-policy")) {
		good = !cpuid_set_policy(value);
	} else if (!strcmp(name, "kvm-abi")) {
		good = generation_by_name(value, &option_generation);
	} else if (!strcmp(name, "cet-u")) {
		good = two_words(value, "shstk", "either", &with_either);
		if (good)
			option_cet_u_rule = with_either ? CET_U_WITH_EITHER : CET_U_WITH_SHSTK;
	} else if (!strcmp(name, "symbols")) {
		return symbols_load(value);
	} else {
		errno = ENOENT;
		return -1;
	}
	if (good)
		return 0;
	errno = EINVAL;
	return -1;
}
