// SPDX-License-Identifier: MIT
// Guest code of the litmus tests, copied to the guest's code window. Each piece ends with INT3.
// rdi: shared area, rsi: this vCPU's results, rcx: iterations, rdx: vCPU number, rbp: vCPUs.
// [rdi - 64] is a counter the vCPUs meet at, [rdi - 128] a flag.
	.text
	.macro piece name
	.globl litmus_\name
	.hidden litmus_\name
litmus_\name:
	.endm
	.macro done name
	int3
	.globl litmus_\name\()_end
	.hidden litmus_\name\()_end
litmus_\name\()_end:
	.endm

	// All vCPUs wait for each other; r15 counts the meetings times vCPUs.
	.macro meet
	add %rbp, %r15
	lock incq -64(%rdi)
7:	cmp %r15, -64(%rdi)
	jae 8f
	pause
	jmp 7b
8:
	.endm

	// Two locations of iteration i: rdi + i * 128, and 64 further. Thread 0 has x first, thread 1 y.
	.macro two_locations
	xor %r15, %r15
	mov %rdi, %r8		// own first
	lea 64(%rdi), %r9	// the other's first
	test %rdx, %rdx
	jz 1f
	xchg %r8, %r9
1:
	.endm
	.macro next_iteration
	sub $-128, %r8
	sub $-128, %r9
	add $8, %rsi
	dec %rcx
	.endm

	piece store_buffering	// own = 1; r = other. Both 0 is allowed.
	two_locations
2:	meet
	movl $1, (%r8)
	mov (%r9), %eax
	mov %rax, (%rsi)
	next_iteration
	jnz 2b
	done store_buffering

	piece store_buffering_mfence	// both 0 is forbidden
	two_locations
2:	meet
	movl $1, (%r8)
	mfence
	mov (%r9), %eax
	mov %rax, (%rsi)
	next_iteration
	jnz 2b
	done store_buffering_mfence

	piece store_buffering_locked	// both 0 is forbidden: XCHG is locked
	two_locations
2:	meet
	mov $1, %eax
	xchg %eax, (%r8)
	mov (%r9), %eax
	mov %rax, (%rsi)
	next_iteration
	jnz 2b
	done store_buffering_locked

	piece message_passing	// 0: x = 1, y = 1; 1: r1 = y, r2 = x. r1 = 1 and r2 = 0 is forbidden.
	two_locations
2:	meet
	test %rdx, %rdx
	jnz 3f
	movl $1, (%r8)
	movl $1, (%r9)
	movq $0, (%rsi)
	jmp 4f
3:	mov (%r8), %eax
	mov (%r9), %ebx
	shl $8, %eax
	or %ebx, %eax
	mov %rax, (%rsi)
4:	next_iteration
	jnz 2b
	done message_passing

	piece load_buffering	// r = other; own = 1. Both 1 is forbidden.
	two_locations
2:	meet
	mov (%r9), %eax
	movl $1, (%r8)
	mov %rax, (%rsi)
	next_iteration
	jnz 2b
	done load_buffering

	piece message_passing_string	// the message is written by REP STOSB-free plain and vector stores
	two_locations
	pcmpeqd %xmm0, %xmm0
2:	meet
	test %rdx, %rdx
	jnz 3f
	movdqa %xmm0, (%r8)
	movl $1, (%r9)
	movq $0, (%rsi)
	jmp 4f
3:	mov (%r8), %eax
	movdqa (%r9), %xmm1
	pmovmskb %xmm1, %ebx
	shl $16, %eax
	or %ebx, %eax
	mov %rax, (%rsi)
4:	next_iteration
	jnz 2b
	done message_passing_string

	piece lock_inc		// r8: the counter
2:	lock incl (%r8)
	dec %rcx
	jnz 2b
	done lock_inc

	piece lock_xadd
2:	mov $1, %eax
	lock xadd %eax, (%r8)
	dec %rcx
	jnz 2b
	done lock_xadd

	piece cmpxchg
2:	mov (%r8), %rax
3:	lea 1(%rax), %rbx
	lock cmpxchg %rbx, (%r8)
	jnz 3b
	dec %rcx
	jnz 2b
	done cmpxchg

	piece cmpxchg16b	// both halves count
	mov %rcx, %r14
2:	mov (%r8), %rax
	mov 8(%r8), %rdx
3:	lea 1(%rax), %rbx
	lea 1(%rdx), %rcx
	lock cmpxchg16b (%r8)
	jnz 3b
	dec %r14
	jnz 2b
	done cmpxchg16b

	piece spinlock		// XCHG lock at [rdi], plain increment under it
2:	mov $1, %eax
3:	xchg %eax, (%rdi)
	test %eax, %eax
	jz 4f
	pause
	jmp 3b
4:	incl (%r8)
	movl $0, (%rdi)
	dec %rcx
	jnz 2b
	done spinlock

	// Self-modifying: the immediate of a MOV further on is changed each time round.
	piece self_modifying	// rax: sum of rcx.. 1
	xor %eax, %eax
2:	mov %ecx, 4f + 1(%rip)
	jmp 3f
3:
4:	mov $0, %ebx
	add %rbx, %rax
	dec %rcx
	jnz 2b
	done self_modifying

	piece self_modifying_straight	// with no branch between, as every processor since the P6 sees it
	xor %eax, %eax
2:	mov %ecx, 4f + 1(%rip)
4:	mov $0, %ebx
	add %rbx, %rax
	dec %rcx
	jnz 2b
	done self_modifying_straight

	piece self_modifying_string	// the code is written by REP MOVSB
	mov %rdi, %r8
	mov %rcx, %r9
	xor %eax, %eax
2:	mov %r9d, (%r8)
	mov %r8, %rsi
	lea 4f + 1(%rip), %rdi
	mov $4, %ecx
	rep movsb
	jmp 4f
4:	mov $0, %ebx
	add %rbx, %rax
	dec %r9
	jnz 2b
	done self_modifying_string

	// Cross-modifying: vCPU 0 writes code, then the flag; vCPU 1 sees the flag, serializes, runs it.
	piece cross_modifying
	xor %r15, %r15
	xor %r12, %r12		// sum
	mov %rcx, %r13
	mov %rdx, %r14
2:	test %r14, %r14
	jnz 3f
	mov %r13d, 5f + 1(%rip)
	mov %r13, -128(%rdi)
	jmp 6f
3:	cmp %r13, -128(%rdi)
	je 4f
	pause
	jmp 3b
4:	xor %eax, %eax
	xor %ecx, %ecx
	cpuid
5:	mov $0, %ebx
	add %rbx, %r12
6:	meet
	dec %r13
	jnz 2b
	mov %r12, %rax
	done cross_modifying

	.section .note.GNU-stack,"",@progbits
