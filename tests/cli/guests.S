// SPDX-License-Identifier: MIT
// Flat guests for the tests of `cetkvm run`: GUEST names the one to build. Entered in long mode, or in
// 32-bit protected mode when built with -m32, as the manual page says.
#ifndef EXIT_PORT
#define EXIT_PORT 0x501
#endif

#ifdef __x86_64__
#define REG(name) r##name
#else
#define REG(name) e##name
#endif

	.macro exit status
	mov $EXIT_PORT, %dx
	mov $\status, %al
	out %al, %dx
.Lexit\@:
	hlt
	jmp .Lexit\@
	.endm

	.text
	.globl _start
_start:
	jmp GUEST

// Writes to the serial port with one string instruction, then ends with status 42.
hello:
	cld
	mov $message, %REG(si)
	mov $(message_end - message), %ecx
	mov $0x3f8, %edx
	rep outsb
	exit 42

// Writes lines without end.
loud:
	mov $0x3f8, %edx
	mov $'\n', %al
1:	out %al, %dx
	jmp 1b

// Ends by ACPI: PM1a control, SLP_TYP 5 and SLP_EN.
poweroff:
	mov $0x604, %edx
	mov $(5 << 10 | 0x2000), %eax
	out %ax, %dx
1:	hlt
	jmp 1b

// Each of the three ways to reset. CMOS would forget: a second boot ends with status 0 only by the
// command line's --no-reboot.
reset_cf9:
	mov $0xcf9, %edx
	mov $0x06, %al
	out %al, %dx
1:	jmp 1b
reset_8042:
	mov $0xfe, %al
	out %al, $0x64
1:	jmp 1b
reset_port92:
	mov $0x01, %al
	out %al, $0x92
1:	jmp 1b

// An exception with no interrupt table: the IDT's limit is 0.
triple_fault:
	mov $0x1234, %eax
	ud2

debug_exit:
	mov $0xf4, %edx
	mov $5, %eax
	out %eax, %dx
1:	hlt
	jmp 1b

panic:
	mov $0x505, %edx
	mov $1, %al
	out %al, %dx
1:	hlt
	jmp 1b

// Says that it is there, then does nothing for ever.
hang:
	mov $0x3f8, %edx
	mov $'H', %al
	out %al, %dx
	cli
1:	pause
	jmp 1b

// Prints the command line that boot_params (RSI) or the boot data names.
command_line:
	mov 0x228(%REG(si)), %esi
	mov $0x3f8, %edx
1:	lodsb
	test %al, %al
	jz 2f
	out %al, %dx
	jmp 1b
2:	mov $'\n', %al
	out %al, %dx
	exit 0

// Echoes what it reads from the serial port, polling, until a 'q'.
echo:
1:	mov $0x3fd, %edx
	in %dx, %al
	test $1, %al
	jz 1b
	mov $0x3f8, %edx
	in %dx, %al
	cmp $'q', %al
	je 2f
	out %al, %dx
	jmp 1b
2:	exit 7

// What the UART must answer: scratch register, loopback of modem lines and data, FIFO and
// transmit-empty identification. The status says which check failed.
	.macro reg_out port value
	mov $\port, %dx
	mov $\value, %al
	out %al, %dx
	.endm
	.macro expect port mask value status
	mov $\port, %dx
	in %dx, %al
	and $\mask, %al
	cmp $\value, %al
	je .Lgood\@
	exit \status
.Lgood\@:
	.endm
uart:
	reg_out 0x3ff 0x5a
	expect 0x3ff 0xff 0x5a 1
	reg_out 0x3f9 0x0f
	expect 0x3f9 0xff 0x0f 2
	reg_out 0x3f9 0x00
	reg_out 0x3fc 0x1a
	expect 0x3fe 0xf0 0x90 3
	reg_out 0x3f8 0x78
	expect 0x3fd 0x01 0x01 4
	expect 0x3f8 0xff 0x78 5
	expect 0x3fd 0x01 0x00 6
	reg_out 0x3fc 0x08
	reg_out 0x3fa 0x01
	expect 0x3fa 0xc1 0xc1 7
	reg_out 0x3f9 0x02
	expect 0x3fa 0x0f 0x02 8
	expect 0x3fa 0x0f 0x01 9
	reg_out 0x3fb 0x83
	reg_out 0x3f8 0x01
	expect 0x3f8 0xff 0x01 10
	reg_out 0x3fb 0x03
	expect 0x3fd 0x60 0x60 11
	reg_out 0x3fa 0x00
	expect 0x3fa 0xc0 0x00 12
	exit 0

// The RSDP at 0xe0000, "RSD PTR ", and its checksum; then the XSDT's tables' checksums.
acpi:
	mov $0xe0000, %REG(si)
	cmpl $0x20445352, (%REG(si))
	je 1f
	exit 1
1:	mov $36, %ecx
	call sum
	je 2f
	exit 2
2:	mov 24(%REG(si)), %edi
	mov 4(%REG(di)), %ebp
	mov %edi, %esi
	mov %ebp, %ecx
	call sum
	je 3f
	exit 3
3:	add %edi, %ebp
	add $36, %edi
4:	mov (%REG(di)), %esi
	mov 4(%REG(si)), %ecx
	call sum
	je 5f
	exit 4
5:	add $8, %edi
	cmp %ebp, %edi
	jb 4b
	exit 0
sum:
	xor %eax, %eax
	xor %ebx, %ebx
6:	addb (%REG(si),%REG(bx)), %al
	inc %ebx
	dec %ecx
	jnz 6b
	test %al, %al
	ret

// Memory at the top of RAM, below the hole and above 4 GiB when there is such, by e820.
memory:
	movzbl 0x1e8(%REG(si)), %ecx
	lea 0x2d0(%REG(si)), %REG(di)
1:	cmpl $1, 16(%REG(di))
	jne 2f
	mov (%REG(di)), %REG(bx)
	add 8(%REG(di)), %REG(bx)
#ifdef __x86_64__
	mov %rbx, %rax
	shr $32, %rax
	jnz 3f
#endif
	movl $0x12345678, -4(%REG(bx))
	cmpl $0x12345678, -4(%REG(bx))
	je 2f
	exit 1
2:	add $20, %REG(di)
	dec %ecx
	jnz 1b
	exit 0
3:	mov $'H', %al
	mov $0x3f8, %edx
	out %al, %dx
	jmp 2b

	.section .rodata
message:
	.ascii "hello from a flat guest\n"
message_end:
	.section .note.GNU-stack, "", @progbits
