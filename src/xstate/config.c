// SPDX-License-Identifier: MIT
// The configurations computed from what the processor enumerates, and permissions on top of them.
#include "xstate/config.h"

#include <errno.h>

// Supervisor components that the kernel can manage; the others' features keep theirs themselves.
#define SUPERVISOR_SUPPORTED \
	(XSTATE_MASK(XSTATE_PASID) | XSTATE_MASK(XSTATE_CET_U) | XSTATE_MASK(XSTATE_CET_S))

static bool bit_given(const struct xstate_processor *processor, const struct xstate_cpuid_bit *bit)
{
	return processor->has(bit, processor->opaque);
}

static bool feature_given(const struct xstate_processor *processor, const struct xstate_component *c,
			  enum xstate_cet_u_rule rule)
{
	if (!c->cpuid[0].leaf)
		return true;
	if (bit_given(processor, &c->cpuid[0]))
		return true;
	return rule == CET_U_WITH_EITHER && c->cpuid[1].leaf && bit_given(processor, &c->cpuid[1]);
}

static uint64_t kernel_max(const struct xstate_processor *processor, enum xstate_cet_u_rule rule)
{
	uint64_t max = processor->xcr0 & xstate_user_mask();

	if (!processor->xsave)
		return XSTATE_MASK_FPSSE;
	if (processor->xsaves)
		max |= processor->xss & SUPERVISOR_SUPPORTED;
	for (unsigned i = 0; i < XSTATE_BITS; i++) {
		const struct xstate_component *c = xstate_component(i);

		if ((max >> i & 1) && !feature_given(processor, c, rule))
			max &= ~XSTATE_MASK(i);
	}
	// APX lies where MPX lay; nobody has both.
	if (max & XSTATE_MASK(XSTATE_APX))
		max &= ~XSTATE_MASK_MPX;
	return max;
}

uint32_t xstate_kernel_size(const struct xstate_configs *configs, uint64_t features)
{
	return configs->compacted ? xstate_compacted_size(features) : xstate_standard_size(features);
}

void xstate_configure(struct xstate_configs *configs, const struct xstate_processor *processor,
		      enum xstate_cet_u_rule rule)
{
	uint64_t max = kernel_max(processor, rule);
	uint64_t task = max & ~(XSTATE_MASK_GUEST_SUPERVISOR | XSTATE_MASK_USER_DYNAMIC);
	uint64_t guest = max & ~XSTATE_MASK_USER_DYNAMIC;
	uint64_t user = xstate_user_mask();

	configs->xsave = processor->xsave;
	configs->compacted = processor->xsave && processor->xsaves;
	configs->independent = configs->compacted ? processor->xss & XSTATE_MASK_INDEPENDENT : 0;
	configs->xss = (max & xstate_supervisor_mask()) | configs->independent;
	configs->kernel = (struct xstate_config){ max, task, xstate_kernel_size(configs, max),
						  xstate_kernel_size(configs, task) };
	configs->user = (struct xstate_config){ max & user, task & user, xstate_standard_size(max & user),
						xstate_standard_size(task & user) };
	configs->guest_default.features = guest;
	configs->guest_default.size = xstate_kernel_size(configs, guest);
}

void xstate_permission_init(struct xstate_permission *permission, const struct xstate_configs *configs,
			    bool guest)
{
	uint64_t features = guest ? configs->guest_default.features : configs->kernel.default_features;

	*permission = (struct xstate_permission){
		.features = features,
		.kernel_size = xstate_kernel_size(configs, features),
		.user_size = configs->user.default_size,
	};
}

int xstate_permission_request(struct xstate_permission *permission, const struct xstate_configs *configs,
			      unsigned bit)
{
	uint64_t wanted;

	if (bit >= XSTATE_BITS)
		return -EINVAL;
	wanted = XSTATE_MASK(bit);
	if (!(wanted & XSTATE_MASK_USER_DYNAMIC) || (configs->user.max_features & wanted) != wanted)
		return -EOPNOTSUPP;
	if ((permission->features & wanted) == wanted)
		return 0;
	if (permission->locked)
		return -EBUSY;
	permission->features |= wanted;
	permission->kernel_size = xstate_kernel_size(configs, permission->features);
	permission->user_size = xstate_standard_size(permission->features & configs->user.max_features);
	return 0;
}

uint64_t xstate_permission_visible(const struct xstate_permission *permission,
				   const struct xstate_configs *configs)
{
	return permission->features & configs->user.max_features;
}
