// SPDX-License-Identifier: MIT
// What the guest and the tool outside it agree upon: the components, the ports, the report in memory.
#ifndef CETKVM_FLEET_GUEST_ABI_H
#define CETKVM_FLEET_GUEST_ABI_H

#include <stdint.h>

#define FLEET_MEMORY_SIZE 0x200000
#define FLEET_BOOT_TABLES 0x1000   // three pages: the first page tables, made outside
#define FLEET_REPORT      0x8000   // struct fleet_report
#define FLEET_LOAD        0x100000 // the image, and its entry

// The guest writes one of these, 32 bits wide, to the port.
#define FLEET_PORT     0x510
#define FLEET_MOVE     1 // all is set: stop me here and move me
#define FLEET_REPORTED 2 // the report is complete, and the calls of before have returned
#define FLEET_DYING    3 // an exception; the report says what is left. It does not go on.

enum fleet_component {
	FLEET_GPRS,
	FLEET_SEGMENTS,
	FLEET_CONTROL,
	FLEET_DEBUG,
	FLEET_MSRS,
	FLEET_XCR0,
	FLEET_X87,
	FLEET_SSE,
	FLEET_AVX,
	FLEET_AVX512,
	FLEET_PKRU,
	FLEET_AMX,
	FLEET_CET_U,
	FLEET_CET_S,
	FLEET_S_CET,
	FLEET_SHADOW_STACK,
	FLEET_USER_STACK,
	FLEET_COMPONENTS
};

enum fleet_verdict {
	FLEET_UNUSED, // the guest does not have it, or had lost it before
	FLEET_SAME,
	FLEET_WRONG,  // there, and not what was left in it
	FLEET_OFF,    // switched off, or its instructions and registers are no longer there
};

// `what` is an MSR's number, a register's, or the offset in the component, as the component has it.
struct fleet_finding {
	uint32_t verdict, what;
	uint64_t wanted, found;
};

struct fleet_report {
	uint32_t step;      // of the guest's loop, from 1
	uint32_t in_use;    // a bit per component: patterns were left in it before the move
	uint32_t depth;     // calls that were open at the move
	uint32_t returned;  // and how many of them have returned since
	uint32_t user_depth, user_returned; // the same of the program in ring 3
	uint32_t exception; // 1 + vector of the exception that ended it, or 0
	uint32_t checked;   // the findings are there
	uint64_t error, rip, cr2;
	struct fleet_finding found[FLEET_COMPONENTS];
};

#endif
