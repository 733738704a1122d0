/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The shim socket's records (docs/protocol.md). The only place on the C side
 * that knows an offset; tests/unit/test_wire.py holds it to the page and to
 * the router's wire.py.
 */
#ifndef SLIM_WIRE_H
#define SLIM_WIRE_H

#include <stddef.h>
#include <stdint.h>

#define SLIM_MAGIC 0x4C53
#define SLIM_VERSION 1
#define SLIM_COMMIT_SIZE 24
#define SLIM_HELLO_SIZE 80
#define SLIM_MAX_PREFIXES 16

enum slim_type {
	SLIM_HELLO = 1,
	SLIM_WELCOME,
	SLIM_CONNECT,
	SLIM_WARM,
	SLIM_COLD,
	SLIM_PLAIN,
	SLIM_BEGIN,
	SLIM_SWAP,
	SLIM_SWAPPED,
	SLIM_KEEP,
	SLIM_CANCEL,
	SLIM_LISTEN,
	SLIM_LISTENING,
	SLIM_WHO,
	SLIM_NAMES,
	SLIM_SYNC,
	SLIM_SYNCED,
	SLIM_ACCEPTED,
	SLIM_ERROR,
	SLIM_COMMITTED,
	SLIM_JOIN,
	SLIM_REFUSED,
};

enum slim_flag {
	SLIM_F_NONBLOCK = 1,
	SLIM_F_BOUND = 2,
	SLIM_F_RECOVER = 4,
	SLIM_F_LISTENER = 8,
	SLIM_F_OVERLAY = 16,
	SLIM_F_SECURE = 32,
};

/* Little-endian; the library is built for little-endian machines only. */
struct slim_msg {
	uint16_t magic;
	uint8_t version;
	uint8_t type;
	uint32_t seq;
	uint32_t flags;
	uint32_t error;
	uint8_t local[16];
	uint8_t peer[16];
	uint16_t lport;
	uint16_t pport;
	uint16_t family;
	uint16_t count;
	uint64_t cookie;
	uint64_t value;
	uint8_t commit[SLIM_COMMIT_SIZE];
};

struct slim_prefix {
	uint8_t addr[16];
	uint8_t bits;
	uint8_t zero[3];
};

_Static_assert(sizeof(struct slim_msg) == 96, "docs/protocol.md: 96 bytes");
_Static_assert(sizeof(struct slim_prefix) == 20, "docs/protocol.md: 20 bytes");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "little-endian only");

#endif
