// SPDX-License-Identifier: GPL-2.0-only
/*
 * Hooks for the calls that proto_ops do not see: options of SOL_SOCKET, the
 * ioctls that sock_ioctl() and the file layer answer themselves, and chown.
 *
 * ftrace, by name: no kernel text is touched by us, no unexported symbol is
 * needed. IPMODIFY lets us send a refused call to a function that only returns
 * the answer, and lets nobody else (a live patch) have the same function.
 * PERMANENT makes kernel.ftrace_enabled=0 fail while we are here, and makes us
 * fail where it is 0 already. Neither RECURSION nor RCU is asked for: with
 * them ftrace may skip a call, which here would mean letting it through.
 *
 * security_file_ioctl_compat came with 6.8 and was carried back to Debian's
 * 6.1. Where a kernel has none, its 32-bit ioctl goes through
 * security_file_ioctl, so that nothing is missing.
 */
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/ftrace.h>
#include <linux/kprobes.h>
#include <linux/magic.h>
#include <linux/net.h>
#include <linux/path.h>
#include <linux/string.h>
#include <linux/tcp.h>

#include "allow.h"
#include "slim.h"

struct slim_hook {
	const char *name;
	struct ftrace_ops ops;
	bool optional;		/* a kernel may do without this function */
	bool attached;
};

/* The ends of a refused call; a hooked call is continued here. */
static notrace noinline int slim_answer_refused(void)
{
	return -EPERM;
}

static notrace noinline int slim_answer_aborted(void)
{
	return -ECONNABORTED;
}

/*
 * Options that nobody may set, not even the router: they would put other
 * operations in the place of ours.
 */
static bool slim_option_replaces_ops(int level, int name)
{
	return (level == SOL_TCP && name == TCP_ULP) ||
	       (level == SOL_IPV6 && name == IPV6_ADDRFORM);
}

static notrace void slim_on_setsockopt(unsigned long ip, unsigned long parent,
				       struct ftrace_ops *ops, struct ftrace_regs *regs)
{
	struct socket *sock = (struct socket *)slim_argument(regs, 0);
	int level, name;

	if (likely(!slim_is_tagged(sock->sk)))
		return;
	level = (int)slim_argument(regs, 1);
	name = (int)slim_argument(regs, 2);
	if (slim_option_replaces_ops(level, name) ||
	    (!slim_allow_set(level, name) && slim_is_outside(sock->sk))) {
		slim_deny(SLIM_CALL_SETSOCKOPT);
		slim_redirect(regs, slim_answer_refused);
	} else if (slim_is_revoked(sock)) {
		slim_redirect(regs, slim_answer_aborted);
	}
}

static notrace void slim_on_getsockopt(unsigned long ip, unsigned long parent,
				       struct ftrace_ops *ops, struct ftrace_regs *regs)
{
	struct socket *sock = (struct socket *)slim_argument(regs, 0);
	int level, name;

	if (likely(!slim_is_tagged(sock->sk)))
		return;
	level = (int)slim_argument(regs, 1);
	name = (int)slim_argument(regs, 2);
	if (!slim_allow_get(level, name) && slim_is_outside(sock->sk)) {
		slim_deny(SLIM_CALL_GETSOCKOPT);
		slim_redirect(regs, slim_answer_refused);
	} else if (level == SOL_SOCKET && name == SO_ERROR && slim_is_revoked(sock)) {
		/* Reading it clears it; a revoked socket has it for ever. */
		WRITE_ONCE(sock->sk->sk_err, ECONNABORTED);
	}
}

static notrace void slim_on_ioctl(unsigned long ip, unsigned long parent,
				  struct ftrace_ops *ops, struct ftrace_regs *regs)
{
	struct file *file = (struct file *)slim_argument(regs, 0);
	struct socket *sock;

	if (likely(!S_ISSOCK(file_inode(file)->i_mode)))
		return;
	sock = sock_from_file(file);
	if (!sock || likely(!slim_is_tagged(sock->sk)))
		return;
	if (!slim_allow_ioctl((unsigned int)slim_argument(regs, 1)) &&
	    slim_is_outside(sock->sk)) {
		slim_deny(SLIM_CALL_IOCTL);
		slim_redirect(regs, slim_answer_refused);
	}
}

/*
 * The owner of a socket's inode is its sk_uid, by which the host routes and
 * filters. The path may outlive the socket (O_PATH): RCU keeps what we look at
 * a struct sock of TCP's, be it another one by now.
 */
static notrace void slim_on_chown(unsigned long ip, unsigned long parent,
				  struct ftrace_ops *ops, struct ftrace_regs *regs)
{
	const struct path *path = (const struct path *)slim_argument(regs, 0);
	struct inode *inode = d_backing_inode(path->dentry);
	struct sock *sk;

	/* A Unix socket's name in a file system is S_ISSOCK too. */
	if (likely(!S_ISSOCK(inode->i_mode) || inode->i_sb->s_magic != SOCKFS_MAGIC))
		return;
	rcu_read_lock();
	sk = READ_ONCE(SOCKET_I(inode)->sk);
	if (unlikely(slim_is_tagged(sk)) && slim_is_outside(sk)) {
		slim_deny(SLIM_CALL_CHOWN);
		slim_redirect(regs, slim_answer_refused);
	}
	rcu_read_unlock();
}

#define SLIM_HOOK(name_, call_, optional_) { \
	.name = name_, \
	.ops = { \
		.func = call_, \
		.flags = FTRACE_OPS_FL_IPMODIFY | FTRACE_OPS_FL_PERMANENT, \
	}, \
	.optional = optional_, \
}

static struct slim_hook slim_hooks[] = {
	SLIM_HOOK("security_socket_setsockopt", slim_on_setsockopt, false),
	SLIM_HOOK("security_socket_getsockopt", slim_on_getsockopt, false),
	SLIM_HOOK("security_file_ioctl", slim_on_ioctl, false),
	SLIM_HOOK("security_file_ioctl_compat", slim_on_ioctl, true),
	SLIM_HOOK("security_path_chown", slim_on_chown, false),
};

/*
 * Where a function of the kernel is, or NULL: a probe that is never armed
 * knows, and needs no kallsyms.
 */
void *slim_symbol(const char *name)
{
	struct kprobe probe = {
		.symbol_name = name,
		.flags = KPROBE_FLAG_DISABLED,
	};
	void *address;

	if (register_kprobe(&probe))
		return NULL;
	address = probe.addr;
	unregister_kprobe(&probe);
	return address;
}

/* Is there no function of this name at all? Any other failure is not "no". */
static bool slim_symbol_absent(const char *name)
{
	struct kprobe probe = {
		.symbol_name = name,
		.flags = KPROBE_FLAG_DISABLED,
	};
	int error = register_kprobe(&probe);

	if (!error)
		unregister_kprobe(&probe);
	return error == -ENOENT;
}

static const char *slim_hook_reason(int error)
{
	switch (error) {
	case -EBUSY:
		return "another live patch or tracer has it, or kernel.ftrace_enabled is 0";
	case -EINVAL:
		return "this kernel has no such function that can be traced";
	case -ENODEV:
		return "ftrace is off or dead on this kernel";
	default:
		return "see the kernel's log above";
	}
}

static int slim_hook_attach(struct slim_hook *hook)
{
	int error;

	error = ftrace_set_filter(&hook->ops, (unsigned char *)hook->name,
				  strlen(hook->name), 1);
	if (error == -EINVAL && hook->optional && slim_symbol_absent(hook->name)) {
		pr_notice("this kernel has no %s; its calls go through the others\n",
			  hook->name);
		return 0;
	}
	if (!error) {
		error = register_ftrace_function(&hook->ops);
		if (!error) {
			hook->attached = true;
			return 0;
		}
		ftrace_free_filter(&hook->ops);
	}
	pr_err("hook %s cannot be attached (%d): %s; not loaded\n", hook->name, error,
	       slim_hook_reason(error));
	return error;
}

int slim_hooks_attach(void)
{
	unsigned int i;
	int error;

	for (i = 0; i < ARRAY_SIZE(slim_hooks); i++) {
		error = slim_hook_attach(&slim_hooks[i]);
		if (error) {
			slim_hooks_detach();
			return error;
		}
	}
	return 0;
}

/* Returns when no task is inside a hook or preempted in one. */
void slim_hooks_detach(void)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(slim_hooks); i++) {
		if (!slim_hooks[i].attached)
			continue;
		WARN_ON(unregister_ftrace_function(&slim_hooks[i].ops));
		ftrace_free_filter(&slim_hooks[i].ops);
		slim_hooks[i].attached = false;
	}
}

/* The number of hooks attached and, one by one, their names (NULL: the end). */
const char *slim_hook_name(unsigned int index)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(slim_hooks); i++)
		if (slim_hooks[i].attached && !index--)
			return slim_hooks[i].name;
	return NULL;
}
