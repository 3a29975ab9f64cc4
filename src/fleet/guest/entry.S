/* SPDX-License-Identifier: MIT */
/*
 * Entry of the guest, the point at which it is moved, and the way into its exception handler.
 *
 * At the move every register holds a pattern and nothing is on its way to memory: the OUT is the last
 * instruction of the old host and what follows it the first of the new one. What comes after reads
 * everything into memory without a call, for the shadow stack may be gone.
 */
	.section .text.start, "ax"
	.globl start
start:
	endbr64
	leaq stack_top(%rip), %rsp
	xorl %ebp, %ebp
	call guest_main
1:	hlt
	jmp 1b

	.text
/* INT 0x30 from ring 3: a system call, on the stacks of TSS.RSP0 and IA32_PL0_SSP. */
	.balign 16
	.globl kernel_entry
kernel_entry:
	endbr64
	cld
	subq $8, %rsp
	call guest_step
	addq $8, %rsp
	iretq

	.globl fleet_move
fleet_move:
	endbr64
	pushq %rbx
	pushq %rbp
	pushq %r12
	pushq %r13
	pushq %r14
	pushq %r15
	xorl %eax, %eax
	rdsspq %rax			/* leaves the register alone where there is no shadow stack */
	movq %rax, ssp_set(%rip)
	fxrstor64 area_set(%rip)
	movl $-1, %eax
	movl $-1, %edx
	cmpl $0, use_xsave(%rip)
	je 1f
	xrstor64 area_set(%rip)
1:	pushq flags_set(%rip)
	popfq
	movq gpr_set+0(%rip), %rax
	movq gpr_set+8(%rip), %rcx
	movq gpr_set+16(%rip), %rdx
	movq gpr_set+24(%rip), %rbx
	movq %rsp, gpr_set+32(%rip)
	movq gpr_set+40(%rip), %rbp
	movq gpr_set+48(%rip), %rsi
	movq gpr_set+56(%rip), %rdi
	movq gpr_set+64(%rip), %r8
	movq gpr_set+72(%rip), %r9
	movq gpr_set+80(%rip), %r10
	movq gpr_set+88(%rip), %r11
	movq gpr_set+96(%rip), %r12
	movq gpr_set+104(%rip), %r13
	movq gpr_set+112(%rip), %r14
	movq gpr_set+120(%rip), %r15
	outl %eax, %dx
	movq %rax, gpr_found+0(%rip)
	movq %rcx, gpr_found+8(%rip)
	movq %rdx, gpr_found+16(%rip)
	movq %rbx, gpr_found+24(%rip)
	movq %rsp, gpr_found+32(%rip)
	movq %rbp, gpr_found+40(%rip)
	movq %rsi, gpr_found+48(%rip)
	movq %rdi, gpr_found+56(%rip)
	movq %r8, gpr_found+64(%rip)
	movq %r9, gpr_found+72(%rip)
	movq %r10, gpr_found+80(%rip)
	movq %r11, gpr_found+88(%rip)
	movq %r12, gpr_found+96(%rip)
	movq %r13, gpr_found+104(%rip)
	movq %r14, gpr_found+112(%rip)
	movq %r15, gpr_found+120(%rip)
	movl $1, gprs_read(%rip)
	pushfq
	popq flags_found(%rip)
	xorl %eax, %eax
	rdsspq %rax
	movq %rax, ssp_found(%rip)
	fxsave64 legacy_found(%rip)
	movl $1, legacy_read(%rip)
	movq %cr4, %rax
	testl $1 << 18, %eax		/* CR4.OSXSAVE */
	jz 2f
	cmpl $0, use_xsave(%rip)
	je 2f
	movl $-1, %eax
	movl $-1, %edx
	xsave64 area_found(%rip)
	movl $1, area_read(%rip)
2:	popq %r15
	popq %r14
	popq %r13
	popq %r12
	popq %rbp
	popq %rbx
	ret

/* One stub per exception, 16 bytes each. Every gate has a stack of its own, on either stack. */
	.balign 16
	.globl exception_stubs
exception_stubs:
	vector = 0
	.rept 32
	.balign 16
	endbr64
	.if (vector != 8) && ((vector < 10) || (vector > 14)) && (vector != 17) && (vector != 21)
	pushq $0
	.endif
	pushq $vector
	jmp exception
	vector = vector + 1
	.endr

exception:
	/* vector, error, rip, cs, rflags, rsp, ss */
	cmpq $0, recover_rip(%rip)
	je 1f
	/* A probe, made with CET off, so that IRET to another place is no violation. */
	pushq %rax
	movq recover_rip(%rip), %rax
	movq %rax, 24(%rsp)
	movq $0, recover_rip(%rip)
	popq %rax
	addq $16, %rsp
	iretq
1:	movq %rsp, %rdi
	movq %cr4, %rsi
	/* No call before CET is off: the shadow stack may be what is broken. */
	movq %rsi, %rax
	andq $~0x800000, %rax
	movq %rax, %cr4
	call die
2:	hlt
	jmp 2b

/* The program in ring 3: a system call inside nested calls, again and again. Page tables give it this. */
	.section .user, "awx", @progbits
	.macro NESTED name, inner:vararg
\name:
	\inner
	incl user_returned(%rip)
	ret
	.endm
	.globl user_main, user_returned, user_stack_top
user_main:
	endbr64
1:	call user_1
	jmp 1b
	NESTED user_1, call user_2
	NESTED user_2, call user_3
	NESTED user_3, call user_4
	NESTED user_4, int $0x30
	.balign 16
user_returned:
	.long 0
	.skip 1024
	.balign 16
user_stack_top:

	.bss
	.balign 4096
	.skip 8192
stack_top:
	.section .note.GNU-stack, "", @progbits
