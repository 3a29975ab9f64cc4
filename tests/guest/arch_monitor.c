// SPDX-License-Identifier: MIT
// MONITOR and MWAIT for a guest whose CPUID does not have them: they do nothing at CPL 0 (KVM's
// quirk), are #UD at CPL 3, with any prefix.
#include "kit.h"

CODE(both, "mov %rsp, %rax; xor %ecx, %ecx; xor %edx, %edx; monitor; mwait; mov $77, %ebx");
CODE(bad_address, "mov $0x4000000000000000, %rax; xor %ecx, %ecx; fs monitor; mov $78, %ebx");
CODE(lock_monitor, ".byte 0xf0, 0x0f, 0x01, 0xc8");
CODE(monitorx, ".byte 0x0f, 0x01, 0xfa");
CODE(mwaitx, ".byte 0x0f, 0x01, 0xfb");

void test_main(void)
{
	struct run r = run_default(both);
	u32 leaf[4];

	cpuid(1, 0, leaf);
	if (leaf[2] & 8)
		return;
	run(&r);
	CHECK_DONE("MONITOR and MWAIT go on");
	CHECK_EQ(outcome.gpr[RBX], 77, "behind them");
	r = run_default(bad_address);
	run(&r);
	CHECK_DONE("nothing is checked");
	r = run_user(both);
	run(&r);
	CHECK_VECTOR(UD, "at CPL 3");
	r = run_default(lock_monitor);
	run(&r);
	CHECK_VECTOR(UD, "LOCK");
	r = run_default(monitorx);
	run(&r);
	CHECK_VECTOR(UD, "MONITORX");
	r = run_default(mwaitx);
	run(&r);
	CHECK_VECTOR(UD, "MWAITX");
}
