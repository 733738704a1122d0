// SPDX-License-Identifier: GPL-2.0-only
/*
 * At load, on a socket of our own: each hook refuses one call and lets one
 * through, and so do the operations. A module that is loaded but does not hold
 * would be worse than none.
 *
 * The hooked functions are not exported. Where they are a probe tells (see
 * slim_symbol()), and a static call calls them directly, as the kernel does:
 * an indirect call would trap on processors that enforce branch targets.
 */
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/net.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/sockios.h>
#include <linux/static_call.h>
#include <linux/tcp.h>
#include <net/net_namespace.h>
#include <net/sock.h>
#include <asm/ioctls.h>

#include "slim.h"

typedef int slim_option_fn(struct socket *sock, int level, int name);
typedef int slim_ioctl_fn(struct file *file, unsigned int cmd, unsigned long arg);
typedef int slim_chown_fn(const struct path *path, kuid_t uid, kgid_t gid);

DEFINE_STATIC_CALL_RET0(slim_try_setsockopt, slim_option_fn);
DEFINE_STATIC_CALL_RET0(slim_try_getsockopt, slim_option_fn);
DEFINE_STATIC_CALL_RET0(slim_try_ioctl, slim_ioctl_fn);
DEFINE_STATIC_CALL_RET0(slim_try_compat_ioctl, slim_ioctl_fn);
DEFINE_STATIC_CALL_RET0(slim_try_chown, slim_chown_fn);

static int slim_expect(const char *what, int refused, int allowed)
{
	if (refused == -EPERM && !allowed)
		return 0;
	pr_err("self-test: %s answered %d where it must refuse and %d where it must not; not loaded\n",
	       what, refused, allowed);
	return -EIO;
}

static int slim_test_options(struct socket *sock)
{
	void *set = slim_symbol("security_socket_setsockopt");
	void *get = slim_symbol("security_socket_getsockopt");
	int error;

	if (!set || !get) {
		pr_err("self-test: security_socket_%csetsockopt is not to be found; not loaded\n",
		       set ? 'g' : 's');
		return -ENOENT;
	}
	static_call_update(slim_try_setsockopt, (slim_option_fn *)set);
	static_call_update(slim_try_getsockopt, (slim_option_fn *)get);
	error = slim_expect("security_socket_setsockopt",
			    static_call(slim_try_setsockopt)(sock, SOL_SOCKET, SO_MARK),
			    static_call(slim_try_setsockopt)(sock, SOL_TCP, TCP_NODELAY));
	if (error)
		return error;
	return slim_expect("security_socket_getsockopt",
			   static_call(slim_try_getsockopt)(sock, SOL_SOCKET, SO_PEERNAME),
			   static_call(slim_try_getsockopt)(sock, SOL_SOCKET, SO_TYPE));
}

static int slim_test_ioctls(struct file *file)
{
	void *plain = slim_symbol("security_file_ioctl");
	void *compat = slim_symbol("security_file_ioctl_compat");
	int error;

	if (!plain) {
		pr_err("self-test: security_file_ioctl is not to be found; not loaded\n");
		return -ENOENT;
	}
	static_call_update(slim_try_ioctl, (slim_ioctl_fn *)plain);
	error = slim_expect("security_file_ioctl",
			    static_call(slim_try_ioctl)(file, SIOCGIFCONF, 0),
			    static_call(slim_try_ioctl)(file, FIONREAD, 0));
	if (error || !compat)
		return error;
	static_call_update(slim_try_compat_ioctl, (slim_ioctl_fn *)compat);
	return slim_expect("security_file_ioctl_compat",
			   static_call(slim_try_compat_ioctl)(file, SIOCGIFCONF, 0),
			   static_call(slim_try_compat_ioctl)(file, FIONREAD, 0));
}

/* Before the tag it must be let through, and afterwards refused. */
static int slim_try_to_chown(struct file *file, int *answer)
{
	void *chown = slim_symbol("security_path_chown");

	if (!chown) {
		pr_err("self-test: security_path_chown is not to be found; not loaded\n");
		return -ENOENT;
	}
	static_call_update(slim_try_chown, (slim_chown_fn *)chown);
	*answer = static_call(slim_try_chown)(&file->f_path, INVALID_UID, INVALID_GID);
	return 0;
}

static int slim_test_ops(struct socket *sock)
{
	struct sockaddr_storage name = {};
	struct msghdr message = { .msg_name = &name, .msg_namelen = sizeof(name) };
	int error;

	error = slim_expect("getsockname",
			    sock->ops->getname(sock, (struct sockaddr *)&name, 0), 0);
	if (!error)
		error = slim_expect("listen", sock->ops->listen(sock, 1), 0);
	if (!error)
		error = slim_expect("sendmsg", sock->ops->sendmsg(sock, &message, 0), 0);
	return error;
}

int slim_selftest(void)
{
	struct socket *sock;
	struct file *file;
	int error, before, after;

	error = sock_create_kern(&init_net, AF_INET, SOCK_STREAM, IPPROTO_TCP, &sock);
	if (error) {
		pr_err("self-test: no socket (%d); not loaded\n", error);
		return error;
	}
	/* Takes the socket over, whether it succeeds or not. */
	file = sock_alloc_file(sock, O_CLOEXEC, NULL);
	if (IS_ERR(file)) {
		pr_err("self-test: no file (%ld); not loaded\n", PTR_ERR(file));
		return PTR_ERR(file);
	}
	error = slim_try_to_chown(file, &before);
	if (error)
		goto out;
	/* Nobody has asked for its cookie, so it is 0, which no record names. */
	error = slim_tag(sock, 0);
	if (error) {
		pr_err("self-test: a socket cannot be tagged (%d); not loaded\n", error);
		goto out;
	}
	WRITE_ONCE(slim_tester, current);
	error = slim_test_options(sock);
	if (!error)
		error = slim_test_ioctls(file);
	if (!error)
		error = slim_try_to_chown(file, &after);
	if (!error)
		error = slim_expect("security_path_chown", after, before);
	if (!error)
		error = slim_test_ops(sock);
	WRITE_ONCE(slim_tester, NULL);
	/* Before the file goes: that happens when we are long done. */
	WARN_ON(slim_untag(sock, 0));
	/* The tag's references to the module go with its record. */
	rcu_barrier();
out:
	fput(file);
	return error;
}
