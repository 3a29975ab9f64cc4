// SPDX-License-Identifier: MIT
// Allocation and growth of images, clearing a component, and the guard against guest-only components
// in a task's image.
#include "xstate/fpstate.h"

#include "base/log.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static unsigned refusals;

static void write_header(struct fpstate *fpstate, uint64_t xstate_bv)
{
	struct xstate_header header = { .xstate_bv = xstate_bv };

	if (fpstate->compacted)
		header.xcomp_bv = fpstate->xfeatures | XSTATE_COMPACTED;
	memcpy(fpstate->image + XSTATE_HEADER_OFFSET, &header, sizeof(header));
}

static uint8_t *alloc_image(uint32_t size)
{
	uint8_t *image = aligned_alloc(64, (size + 63) & ~63u);

	if (image)
		memset(image, 0, size);
	return image;
}

static struct fpstate *alloc(const struct xstate_configs *configs, uint64_t features, uint32_t size, bool is_guest)
{
	struct fpstate *fpstate = calloc(1, sizeof(*fpstate));

	if (!fpstate)
		return NULL;
	fpstate->xfeatures = features;
	fpstate->user_xfeatures = configs->user.default_features;
	fpstate->user_size = configs->user.default_size;
	fpstate->size = size;
	fpstate->xsave = configs->xsave;
	fpstate->compacted = configs->compacted;
	fpstate->is_guest = is_guest;
	// A task starts with its dynamic components disabled, a guest with its own IA32_XFD of 0.
	if (!is_guest)
		fpstate->xfd = configs->user.max_features & XSTATE_MASK_USER_DYNAMIC;
	fpstate->uabi_size = fpstate->user_size < XSTATE_UABI_MIN_SIZE ? XSTATE_UABI_MIN_SIZE : fpstate->user_size;
	fpstate->image = alloc_image(fpstate->size);
	if (!fpstate->image) {
		free(fpstate);
		return NULL;
	}
	write_header(fpstate, 0);
	return fpstate;
}

struct fpstate *fpstate_alloc_guest(const struct xstate_configs *configs, struct xstate_permission *permission)
{
	permission->locked = true;
	return alloc(configs, configs->guest_default.features, configs->guest_default.size, true);
}

struct fpstate *fpstate_alloc_task(const struct xstate_configs *configs)
{
	return alloc(configs, configs->kernel.default_features, configs->kernel.default_size, false);
}

void fpstate_free(struct fpstate *fpstate)
{
	if (!fpstate)
		return;
	free(fpstate->image);
	free(fpstate);
}

uint64_t fpstate_xstate_bv(const struct fpstate *fpstate)
{
	struct xstate_header header;

	memcpy(&header, fpstate->image + XSTATE_HEADER_OFFSET, sizeof(header));
	return header.xstate_bv;
}

void fpstate_set_xstate_bv(struct fpstate *fpstate, uint64_t xstate_bv)
{
	write_header(fpstate, xstate_bv & fpstate->xfeatures);
}

uint8_t *fpstate_component(struct fpstate *fpstate, unsigned bit)
{
	uint64_t format = fpstate->compacted ? fpstate->xfeatures | XSTATE_COMPACTED : 0;

	if (!(fpstate->xfeatures >> bit & 1))
		return NULL;
	return fpstate->image + (bit < 2 ? 0 : xstate_offset(format, bit));
}

int fpstate_enable_dynamic(struct fpstate *fpstate, const struct xstate_permission *permission,
			   const struct xstate_configs *configs, uint64_t components)
{
	struct fpstate grown = *fpstate;
	uint64_t xstate_bv = fpstate_xstate_bv(fpstate);

	if (components & ~XSTATE_MASK_USER_DYNAMIC)
		return -EINVAL;
	if (components & ~permission->features)
		return -EPERM;
	if (!(components & ~fpstate->xfeatures))
		return 0;
	grown.xfeatures |= components;
	grown.user_xfeatures |= components;
	grown.xfd &= ~components;
	grown.size = xstate_kernel_size(configs, grown.xfeatures);
	grown.user_size = xstate_standard_size(grown.user_xfeatures);
	if (grown.user_size > grown.uabi_size)
		grown.uabi_size = grown.user_size;
	grown.image = alloc_image(grown.size);
	if (!grown.image)
		return -ENOMEM;
	// Components behind the new ones have moved.
	memcpy(grown.image, fpstate->image, XSTATE_HEADER_OFFSET);
	for (unsigned i = XSTATE_AVX; i < XSTATE_BITS; i++) {
		const uint8_t *data = fpstate_component(fpstate, i);

		if (data)
			memcpy(fpstate_component(&grown, i), data, xstate_component(i)->size);
	}
	free(fpstate->image);
	*fpstate = grown;
	write_header(fpstate, xstate_bv);
	return 0;
}

void fpstate_set_xfd(struct fpstate *fpstate, uint64_t xfd)
{
	fpstate->xfd = xfd;
	if (!fpstate->in_use)
		fpstate_set_xstate_bv(fpstate, fpstate_xstate_bv(fpstate) & ~xfd);
}

void fpstate_clear_component(struct fpstate *fpstate, unsigned bit)
{
	uint8_t *data = bit < XSTATE_BITS ? fpstate_component(fpstate, bit) : NULL;

	if (!data || !(fpstate_xstate_bv(fpstate) >> bit & 1))
		return;
	if (bit == XSTATE_X87) {
		memset(data, 0, 24);
		memset(data + 32, 0, 128);
	} else if (bit == XSTATE_SSE) {
		memset(data + 160, 0, 256);
	} else {
		memset(data, 0, xstate_component(bit)->size);
	}
}

bool fpstate_may_save(const struct fpstate *fpstate)
{
	uint64_t wrong = fpstate->is_guest ? 0 : fpstate->xfeatures & XSTATE_MASK_GUEST_SUPERVISOR;

	if (!wrong)
		return true;
	__atomic_fetch_add(&refusals, 1, __ATOMIC_RELAXED);
	log_warn("bug: a task's extended state has guest-only components %#llx; it is not saved",
		 (unsigned long long)wrong);
	return false;
}

unsigned fpstate_refusals(void)
{
	return __atomic_load_n(&refusals, __ATOMIC_RELAXED);
}
