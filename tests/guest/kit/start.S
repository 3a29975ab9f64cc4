/* SPDX-License-Identifier: MIT */
/*
 * Entry of a guest, the exception stubs, and the two ends of run(): kit_enter and kit_common.
 * Two ways in: e_entry in 64-bit mode with the low 4 GiB identity-mapped, and, for QEMU, the PVH
 * entry in 32-bit protected mode without paging.
 */
	.section .note.Xen, "a", @note
	.balign 4
	.long 4, 8, 18		/* XEN_ELFNOTE_PHYS32_ENTRY */
	.asciz "Xen"
	.quad pvh_start

	.section .text.start, "ax"
	.code32
pvh_start:
	cli
	cld
	movl $boot_pd, %edi
	movl $0x83, %eax		/* 2 MiB pages: present, writable */
	movl $2048, %ecx
1:	movl %eax, (%edi)
	movl $0, 4(%edi)
	addl $0x200000, %eax
	addl $8, %edi
	loop 1b
	movl $boot_pdpt, %edi
	movl $boot_pd + 3, %eax
	movl $4, %ecx
2:	movl %eax, (%edi)
	addl $0x1000, %eax
	addl $8, %edi
	loop 2b
	movl $boot_pdpt + 3, boot_pml4
	movl $boot_pml4, %eax
	movl %eax, %cr3
	movl %cr4, %eax
	orl $0x20, %eax
	movl %eax, %cr4
	movl $0xc0000080, %ecx
	rdmsr
	orl $0x100, %eax
	wrmsr
	movl %cr0, %eax
	orl $0x80000001, %eax
	movl %eax, %cr0
	lgdt boot_gdtr
	ljmp $8, $start64

	.balign 8
boot_gdt:
	.quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff
boot_gdtr:
	.word . - boot_gdt - 1
	.long boot_gdt

	.code64
	.globl start64
start64:
	endbr64
	cli
	cld
	leaq kit_stack_end(%rip), %rsp
	xorl %ebp, %ebp
	call kit_main
1:	hlt
	jmp 1b

/*
 * The stubs: one per vector, 16 bytes each, the layout struct outcome is filled from.
 * Vectors with an error code: 8, 10 to 14, 17, 21 (and 29, 30, which nothing here raises).
 */
	.balign 16
	.globl kit_stubs
kit_stubs:
	vector = 0
	.rept 256
	.balign 16
	endbr64
	.if (vector != 8) && ((vector < 10) || (vector > 14)) && (vector != 17) && (vector != 21)
	pushq $0
	.endif
	pushq $vector
	jmp kit_common
	vector = vector + 1
	.endr

	.balign 16
kit_common:
	/* On the interrupt stack: vector, error, rip, cs, rflags, rsp, ss. */
	movq %rax, outcome+0(%rip)
	movq %rcx, outcome+8(%rip)
	movq %rdx, outcome+16(%rip)
	movq %rbx, outcome+24(%rip)
	movq %rbp, outcome+40(%rip)
	movq %rsi, outcome+48(%rip)
	movq %rdi, outcome+56(%rip)
	movq %r8, outcome+64(%rip)
	movq %r9, outcome+72(%rip)
	movq %r10, outcome+80(%rip)
	movq %r11, outcome+88(%rip)
	movq %r12, outcome+96(%rip)
	movq %r13, outcome+104(%rip)
	movq %r14, outcome+112(%rip)
	movq %r15, outcome+120(%rip)
	cld
	popq outcome+128(%rip)
	popq outcome+136(%rip)
	popq outcome+144(%rip)
	popq outcome+152(%rip)
	popq outcome+160(%rip)
	popq %rax
	movq %rax, outcome+168(%rip)
	movq %rax, outcome+32(%rip)
	popq outcome+176(%rip)
	movq %cr2, %rax
	movq %rax, outcome+184(%rip)
	movq %cr4, %rax
	movq %rax, outcome+256(%rip)
	movq %dr6, %rax
	movq %rax, outcome+264(%rip)
	movw %ds, outcome+272(%rip)
	movw %es, outcome+274(%rip)
	movw %fs, outcome+276(%rip)
	movw %gs, outcome+278(%rip)
	cmpb $0, kit_cet_present(%rip)
	je 1f
	movl $0x6a2, %ecx
	rdmsr
	movl %eax, outcome+192(%rip)
	movl %edx, outcome+196(%rip)
	/* CET off before anything else: from here on calls and returns are the kit's own. */
	movq %cr4, %rax
	andq $~0x800000, %rax
	movq %rax, %cr4
	movl $0x6a2, %ecx
	xorl %eax, %eax
	xorl %edx, %edx
	wrmsr
1:	movq kit_cr4(%rip), %rax
	movq %rax, %cr4
	movl $0x2b, %eax
	movl %eax, %ds
	movl %eax, %es
	movl $0x10, %eax
	movl %eax, %ss
	movq kit_saved_rsp(%rip), %rsp
	pushq $2
	popfq
	popq %r15
	popq %r14
	popq %r13
	popq %r12
	popq %rbp
	popq %rbx
	ret

/* What struct run says about registers and flags, for a jump that keeps the ring. */
	.macro LOAD_REGISTERS
	pushq 136(%r15)
	popfq
	movq 0(%r15), %rax
	movq 8(%r15), %rcx
	movq 16(%r15), %rdx
	movq 24(%r15), %rbx
	movq 32(%r15), %rsp
	movq 40(%r15), %rbp
	movq 48(%r15), %rsi
	movq 56(%r15), %rdi
	movq 64(%r15), %r8
	movq 72(%r15), %r9
	movq 80(%r15), %r10
	movq 88(%r15), %r11
	movq 96(%r15), %r12
	movq 104(%r15), %r13
	movq 112(%r15), %r14
	movq 120(%r15), %r15
	.endm

/* void kit_enter(struct run *): see struct run for the offsets. Returns through kit_common. */
	.globl kit_enter
kit_enter:
	pushq %rbx
	pushq %rbp
	pushq %r12
	pushq %r13
	pushq %r14
	pushq %r15
	movq %rsp, kit_saved_rsp(%rip)
	movq %rdi, %r15
	movq kit_cr4(%rip), %rax
	orq 216(%r15), %rax
	cmpq $0, 224(%r15)
	je 1f
	orq $0x800000, %rax
1:	movq %rax, %cr4
	cmpb $0, kit_cet_present(%rip)
	je 2f
	movl $0x6a2, %ecx
	movl 160(%r15), %eax
	movl 164(%r15), %edx
	wrmsr
	/* The shadow stack may be on now: no call, no return from here. */
	cmpq $0, 224(%r15)
	je 2f
	testl $1, 160(%r15)
	jz 2f
	cmpq $0, 240(%r15)
	jne 2f
	setssbsy
	cmpq $0, 248(%r15)
	je 2f
	movl $0x6a4, %ecx
	movl 248(%r15), %eax
	movl 252(%r15), %edx
	wrmsr
2:	movq 144(%r15), %rax
	cmpq $0x08, %rax
	je enter_ring0
	cmpq $0x18, %rax
	je enter_far
	cmpq $0x58, %rax
	je enter_far
	testl $1, 160(%r15)
	jz 3f
	movl %eax, %ecx
	andl $3, %ecx
	cmpl $3, %ecx
	je 3f
	/* To ring 1 or 2: IRET pops a frame from the shadow stack, so make room and fill it in. */
	call 4f
	nop
4:	call 5f
	nop
5:	call 6f
	nop
6:	addq $24, %rsp
	movq kit_frame_alias(%rip), %rcx
	movq 232(%r15), %rdx
	movq %rdx, 0(%rcx)
	movq 128(%r15), %rdx
	movq %rdx, 8(%rcx)
	movq %rax, 16(%rcx)
3:	pushq 152(%r15)
	pushq 32(%r15)
	pushq 136(%r15)
	pushq %rax
	pushq 128(%r15)
	movq 0(%r15), %rax
	movq 8(%r15), %rcx
	movq 16(%r15), %rdx
	movq 24(%r15), %rbx
	movq 40(%r15), %rbp
	movq 48(%r15), %rsi
	movq 56(%r15), %rdi
	movq 64(%r15), %r8
	movq 72(%r15), %r9
	movq 80(%r15), %r10
	movq 88(%r15), %r11
	movq 96(%r15), %r12
	movq 104(%r15), %r13
	movq 112(%r15), %r14
	movq 120(%r15), %r15
	iretq

enter_far:
	movl 128(%r15), %eax
	movl %eax, kit_target(%rip)
	movl 144(%r15), %eax
	movw %ax, kit_target+4(%rip)
	movl 152(%r15), %eax
	movl %eax, %ss
	LOAD_REGISTERS
	ljmpl *kit_target(%rip)
enter_ring0:
	movq 128(%r15), %rax
	movq %rax, kit_target(%rip)
	LOAD_REGISTERS
	jmp *kit_target(%rip)

	.bss
	.balign 4096
boot_pml4: .skip 4096
boot_pdpt: .skip 4096
boot_pd: .skip 4 * 4096
	.skip 32768
kit_stack_end:
	.balign 8
	.globl kit_saved_rsp, kit_target
kit_saved_rsp: .skip 8
kit_target: .skip 16
	.section .note.GNU-stack, "", @progbits
