// SPDX-License-Identifier: MIT
// An image of extended state in memory, a task's or a guest's: its life, and the ways into and out of
// it for user space. Registers are somebody else's: see cpu_fpstate_save() and cpu_fpstate_load().
//
// Invariants: the image's XCOMP_BV names exactly `xfeatures` (compacted), so that a guest's has CET_S
// and a task's has not; the allocation has room for all of them; XSTATE_BV is a subset. User space
// never sees a supervisor component, and never changes one.
#ifndef CETKVM_XSTATE_FPSTATE_H
#define CETKVM_XSTATE_FPSTATE_H

#include "xstate/config.h"

// The image of KVM_GET_XSAVE; KVM_GET_XSAVE2's is larger when a dynamic component is enabled.
#define XSTATE_UABI_MIN_SIZE 4096

struct fpstate {
	uint64_t xfeatures;	 // components of the image
	uint64_t user_xfeatures; // those that user space may get and set
	uint64_t xfd;
	uint32_t size, user_size, uabi_size; // bytes of the image; of user space's, at least 4096
	bool is_guest;
	bool in_use; // the registers hold the state, and the image is stale
	bool xsave, compacted; // made by XSAVE; in the compacted format
	uint8_t *image; // 64-byte aligned
};

// A guest's image in RESET state: all zero, components as the guest's default. It locks the process's
// permission. NULL: no memory.
struct fpstate *fpstate_alloc_guest(const struct xstate_configs *configs, struct xstate_permission *permission);
// A task's: without guest-only components.
struct fpstate *fpstate_alloc_task(const struct xstate_configs *configs);
void fpstate_free(struct fpstate *fpstate);
// Adds dynamic components. What the image holds is kept. -EPERM: not permitted; -ENOMEM; -EINVAL: not
// dynamic.
int fpstate_enable_dynamic(struct fpstate *fpstate, const struct xstate_permission *permission,
			   const struct xstate_configs *configs, uint64_t components);

// IA32_XFD of the owner. Disabled components of an image in memory are lost.
void fpstate_set_xfd(struct fpstate *fpstate, uint64_t xfd);
// Zeroes one component. Its XSTATE_BV bit stays: the component then has zeros, not its initial values.
void fpstate_clear_component(struct fpstate *fpstate, unsigned bit);

uint64_t fpstate_xstate_bv(const struct fpstate *fpstate);
void fpstate_set_xstate_bv(struct fpstate *fpstate, uint64_t xstate_bv);
// Data of component `bit` (the legacy region's beginning for x87 and SSE), or NULL if it has none.
uint8_t *fpstate_component(struct fpstate *fpstate, unsigned bit);

// To be asked before registers are saved to an image. False for a task's image that has guest-only
// components: says so on standard error, counts it, and the image is not to be written.
bool fpstate_may_save(const struct fpstate *fpstate);
unsigned fpstate_refusals(void); // of this process

// ---- user space's image (uabi.c) ----
// Writes `size` bytes of standard format with XCOMP_BV = 0: components that the image has, the user
// may get, and `mask` names; zeros (x87, SSE: initial values) for the rest. PKRU comes from `pkru`.
// False: `size` is too small for them.
bool fpstate_copy_to_uabi(const struct fpstate *fpstate, void *to, size_t size, uint64_t mask, uint32_t pkru);
// Takes `size` bytes of standard format. -EINVAL, and nothing changed: a component outside
// `supported` or outside user_xfeatures; XCOMP_BV or reserved bytes of the header; reserved MXCSR bits
// when x87, SSE or AVX is there (always, where the processor has FXSAVE only). Components that are not there become initial; supervisor
// components stay. *pkru changes only if PKRU is there.
int fpstate_copy_from_uabi(struct fpstate *fpstate, const void *from, size_t size, uint64_t supported,
			   uint32_t *pkru);

#endif
