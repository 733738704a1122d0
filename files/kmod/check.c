// SPDX-License-Identifier: GPL-2.0-only
/*
 * The numbers of allow.h against the kernel's own. A kernel or architecture
 * that has others does not get a module.
 */
#include <linux/build_bug.h>
#include <linux/in6.h>
#include <linux/net.h>
#include <linux/socket.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <asm/ioctls.h>
#include <asm/socket.h>

#include "allow.h"

#define SLIM_CHECK_OPTION(level, name, number)	static_assert((name) == (number));
#define SLIM_CHECK_NUMBER(name, number)		static_assert((name) == (number));

SLIM_ALLOW_GETS(SLIM_CHECK_OPTION)
SLIM_ALLOW_IOCTLS(SLIM_CHECK_NUMBER)
SLIM_DENY_SEND_FLAGS(SLIM_CHECK_NUMBER)
SLIM_DENY_RECV_FLAGS(SLIM_CHECK_NUMBER)

static_assert(SLIM_SOL_SOCKET == SOL_SOCKET);
static_assert(SLIM_SOL_TCP == SOL_TCP);
static_assert(SIOCINQ == FIONREAD);
static_assert(SIOCOUTQ == TIOCOUTQ);
