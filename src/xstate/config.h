// SPDX-License-Identifier: MIT
// Which components are managed for whom: the kernel's configuration, user space's, a guest's.
//
// A host that runs guests keeps two kinds of images in memory: those of its own tasks and those of
// guests. Both are compacted and made by XSAVES. CET_S is of use to guests alone, so it is a
// guest-only supervisor component: in what the kernel can manage, in every guest's image, in no
// task's. AMX's tile data is dynamic: in nobody's image until permission is asked for and given.
//
// Sources: the two series "Introduce CET supervisor xstate support" and "Enable CET
// Virtualization", and the merged code where it differs.
#ifndef CETKVM_XSTATE_CONFIG_H
#define CETKVM_XSTATE_CONFIG_H

#include "xstate/xstate.h"

// Managed for guests only.
#define XSTATE_MASK_GUEST_SUPERVISOR XSTATE_MASK(XSTATE_CET_S)
// User components that need permission and are then added to an image.
#define XSTATE_MASK_USER_DYNAMIC XSTATE_MASK(XSTATE_TILEDATA)
// Supervisor components that are managed with XSAVES but never with the rest of an image.
#define XSTATE_MASK_INDEPENDENT XSTATE_MASK(XSTATE_LBR)

// Zeroed by INIT; every other component survives it. After RESET all is zero because the image is
// allocated so.
#define XSTATE_MASK_CLEARED_BY_INIT \
	(XSTATE_MASK_MPX | XSTATE_MASK(XSTATE_CET_U) | XSTATE_MASK(XSTATE_CET_S))

// CET_U without shadow stacks. The merged code keys it to SHSTK alone; patch 1 of both series made it
// follow IBT as well, so that a guest with IBT only keeps IA32_U_CET.
enum xstate_cet_u_rule { CET_U_WITH_SHSTK, CET_U_WITH_EITHER };

// The processor below, as its CPUID tells.
struct xstate_processor {
	uint64_t xcr0, xss; // leaf 0xD sub-leaves 0 and 1: what may be set in XCR0 and IA32_XSS
	bool xsave, xsaves; // without XSAVE there is x87 and SSE by FXSAVE
	// Is the feature bit enumerated?
	bool (*has)(const struct xstate_cpuid_bit *bit, const void *opaque);
	const void *opaque;
};

struct xstate_config {
	uint64_t max_features, default_features;
	uint32_t max_size, default_size; // kernel: compacted (with XSAVES); user: standard format
};

struct xstate_configs {
	struct xstate_config kernel, user;
	// A new guest's image.
	struct {
		uint64_t features;
		uint32_t size;
	} guest_default;
	uint64_t independent;
	uint64_t xss; // what the kernel writes to IA32_XSS
	bool xsave, compacted;
};

void xstate_configure(struct xstate_configs *configs, const struct xstate_processor *processor,
		      enum xstate_cet_u_rule rule);

// Size of an image of `features` in memory of the kernel's under this configuration.
uint32_t xstate_kernel_size(const struct xstate_configs *configs, uint64_t features);

// What a process may give its guests (or its tasks). The first guest locks it.
struct xstate_permission {
	uint64_t features; // with the supervisor components
	uint32_t kernel_size, user_size;
	bool locked;
};

void xstate_permission_init(struct xstate_permission *permission, const struct xstate_configs *configs,
			    bool guest);
// Asks for a dynamic component (arch_prctl ARCH_REQ_XCOMP_GUEST_PERM). Supervisor components and the
// lock stay as they are. -EINVAL: no such number. -EOPNOTSUPP: not dynamic, or not there. -EBUSY:
// a guest exists. 0 as well for what is permitted already.
int xstate_permission_request(struct xstate_permission *permission, const struct xstate_configs *configs,
			      unsigned bit);
// What user space is told of it: no supervisor component.
uint64_t xstate_permission_visible(const struct xstate_permission *permission,
				   const struct xstate_configs *configs);

#endif
