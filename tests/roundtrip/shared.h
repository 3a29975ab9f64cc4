/* SPDX-License-Identifier: MIT */
/* What the guest and its client know of each other: a page of guest memory. */
#ifndef ROUNDTRIP_SHARED_H
#define ROUNDTRIP_SHARED_H

#define INFO_AT 0x8000
#define INFO_MAGIC 0x707269727464756full
#define FAIL_PORT 0x502  /* OUT: a check of the guest's own failed, see info */
#define IN_PORT 0x600    /* IN: the client answers with info.io_in, and counts */
#define OUT_PORT 0x604   /* OUT: the client compares with info.io_out, and counts */
#define MMIO_AT 0xd0000000ull /* no memory: loads give mmio_value(address, info.mmio) */

struct info {
	unsigned long long magic;
	unsigned long long iterations, syscalls, timer_ticks, nmis, injected, faults, cps;
	unsigned long long io_in, io_out, mmio, smis;
	/* Stacks of the handlers that may not be entered twice */
	unsigned long long nmi_stack, injected_stack, timer_stack, stack_size;
	unsigned long long failed_line, wanted, got;
	char failed[64];
};

/* SMBASE is as RESET leaves it: the handler's code is guest memory like any other. */
#define SMM_HANDLER_AT 0x38000

static inline unsigned long long mmio_value(unsigned long long address, unsigned long long count)
{
	return (address ^ count * 0x9e3779b97f4a7c15ull) & 0xffffffff;
}

#endif
