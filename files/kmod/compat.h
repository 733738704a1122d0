/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Every difference between kernels that the module meets, and nothing else.
 * SLIM_HAS_* come from Kbuild, which asks the kernel's headers.
 */
#ifndef SLIM_COMPAT_H
#define SLIM_COMPAT_H

#include <linux/ftrace.h>
#include <linux/net.h>
#include <linux/ptrace.h>
#include <linux/slab.h>

#if !defined(CONFIG_DYNAMIC_FTRACE_WITH_ARGS) || !defined(CONFIG_KPROBES) || \
	!defined(CONFIG_SECURITY_PATH) || !defined(CONFIG_EPOLL)
#error "slim_kmod needs DYNAMIC_FTRACE_WITH_ARGS, EPOLL, KPROBES and SECURITY_PATH"
#endif

/*
 * Arguments and instruction pointer of a hooked call. The accessors came in
 * 6.2; before them x86 keeps a struct pt_regs in the structure (5.11).
 */
#ifdef ftrace_regs_get_argument
#define slim_argument(fregs, n)	ftrace_regs_get_argument(fregs, n)
#define slim_redirect(fregs, to) \
	ftrace_regs_set_instruction_pointer(fregs, (unsigned long)(to))
#else
#define slim_argument(fregs, n)	regs_get_kernel_argument(&(fregs)->regs, n)
#define slim_redirect(fregs, to) \
	instruction_pointer_set(&(fregs)->regs, (unsigned long)(to))
#endif

/* accept() takes one structure since 6.10; the module never looks into it. */
#ifdef SLIM_HAS_ACCEPT_ARG
#define SLIM_ACCEPT_ARGS	struct proto_accept_arg *arg
#else
#define SLIM_ACCEPT_ARGS	int flags, bool kern
#endif

/* What bind() and connect() take has a name of its own since 6.19. */
#ifdef SLIM_HAS_SOCKADDR_UNSIZED
#define SLIM_SOCKADDR	struct sockaddr_unsized
#else
#define SLIM_SOCKADDR	struct sockaddr
#endif

/*
 * A cache of objects that nobody else shares: no other object of the kernel's
 * comes to lie where one of ours was, and its end reports those that are left.
 * Before the flag (6.5) a constructor is what keeps a cache from being merged;
 * it must not be asked for zeroed memory then.
 */
#ifdef SLAB_NO_MERGE
#define SLIM_CONSTRUCT		NULL
#else
#define SLAB_NO_MERGE		0
#define SLIM_CONSTRUCT		slim_construct

static inline void slim_construct(void *object)
{
}

#endif

static inline struct kmem_cache *slim_cache(const char *name, unsigned int size,
					    slab_flags_t flags)
{
	return kmem_cache_create(name, size, 0, SLAB_NO_MERGE | flags, SLIM_CONSTRUCT);
}

#endif
