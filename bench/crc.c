// SPDX-License-Identifier: MIT
// CRC-32 by table: a dependent load for every byte.
#include "bench.h"

static uint32_t table[256];
static unsigned char data[1 << 20];

static void work(void)
{
	uint64_t state = 42;
	uint32_t crc = ~0u;

	for (uint32_t i = 0; i < 256; i++) {
		uint32_t c = i;

		for (int k = 0; k < 8; k++)
			c = c & 1 ? c >> 1 ^ 0xedb88320 : c >> 1;
		table[i] = c;
	}
	for (size_t i = 0; i < sizeof(data); i++)
		data[i] = random_next(&state);
	for (int round = 0; round < 150; round++)
		for (size_t i = 0; i < sizeof(data); i++)
			crc = table[(crc ^ data[i]) & 0xff] ^ crc >> 8;
	USE(crc);
}
