/* SPDX-License-Identifier: Apache-2.0 */
/* The calls below us: plain system calls, and libc's own where they block. */
#include "slim.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifdef __GLIBC__
/* Bind to the oldest version: the library is loaded into old images too. */
#if defined(__x86_64__)
__asm__(".symver dlsym, dlsym@GLIBC_2.2.5");
#elif defined(__aarch64__)
__asm__(".symver dlsym, dlsym@GLIBC_2.17");
#endif
#endif

void *slim_real(const char *name, _Atomic(void *) *cache)
{
	void *found = atomic_load_explicit(cache, memory_order_relaxed);

	/* Several threads may look it up at once: they find the same. */
	if (!found) {
		found = dlsym(RTLD_NEXT, name);
		atomic_store_explicit(cache, found, memory_order_relaxed);
	}
	return found;
}

/* Wait until *word is not `seen` any more, or for so long (microseconds). */
void sys_wait(_Atomic uint32_t *word, uint32_t seen, int64_t timeout_us)
{
	struct timespec limit = { timeout_us / 1000000, timeout_us % 1000000 * 1000 };
	int saved = errno;

	syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, &limit, NULL, 0);
	errno = saved;
}

void sys_wake(_Atomic uint32_t *word)
{
	int saved = errno;

	syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
	errno = saved;
}

int sys_close(int fd)
{
	return (int)syscall(SYS_close, fd);
}

int sys_dup3(int fd, int to, int flags)
{
	return (int)syscall(SYS_dup3, fd, to, flags);
}

int sys_fcntl(int fd, int cmd, long arg)
{
	return (int)syscall(SYS_fcntl, fd, cmd, arg);
}

int sys_getsockopt(int fd, int level, int name, void *value, socklen_t *len)
{
	return (int)syscall(SYS_getsockopt, fd, level, name, value, len);
}

int sys_setsockopt(int fd, int level, int name, const void *value, socklen_t len)
{
	return (int)syscall(SYS_setsockopt, fd, level, name, value, len);
}

int sys_getsockname(int fd, struct sockaddr *addr, socklen_t *len)
{
	return (int)syscall(SYS_getsockname, fd, addr, len);
}

int sys_getpeername(int fd, struct sockaddr *addr, socklen_t *len)
{
	return (int)syscall(SYS_getpeername, fd, addr, len);
}

int sys_connect(int fd, const struct sockaddr *addr, socklen_t len)
{
	return (int)syscall(SYS_connect, fd, addr, len);
}

/* poll() of one descriptor; returns revents, 0 at the time-out, -1 on error. */
int sys_poll(int fd, short events, int timeout_us)
{
	struct pollfd entry = { .fd = fd, .events = events };
	struct timespec left = { timeout_us / 1000000, timeout_us % 1000000 * 1000L };
	int64_t end = timeout_us > 0 ? slim_now_us() + timeout_us : 0;

	for (;;) {
		int got = (int)syscall(SYS_ppoll, &entry, 1, timeout_us < 0 ? NULL : &left, NULL, 0);

		if (got > 0)
			return entry.revents;
		if (got == 0 || errno != EINTR)
			return got;
		if (timeout_us > 0) {
			int64_t rest = end - slim_now_us();

			if (rest <= 0)
				return 0;
			left.tv_sec = rest / 1000000;
			left.tv_nsec = rest % 1000000 * 1000;
		}
	}
}

ssize_t sys_sendmsg(int fd, const struct msghdr *msg, int flags)
{
	return syscall(SYS_sendmsg, fd, msg, flags);
}

ssize_t sys_recvmsg(int fd, struct msghdr *msg, int flags)
{
	return syscall(SYS_recvmsg, fd, msg, flags);
}

int sys_epoll_ctl(int epfd, int op, int fd, struct epoll_event *event)
{
	return (int)syscall(SYS_epoll_ctl, epfd, op, fd, event);
}

pid_t sys_getpid(void)
{
	return (pid_t)syscall(SYS_getpid);
}

int64_t slim_now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}
