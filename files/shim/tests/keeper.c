/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stands in for the kernel module where none can be loaded: runs a program and answers
 * EPERM to what a tagged socket refuses, by seccomp's user notification.
 *
 *   keeper RULES OUTPUT PROGRAM [ARGUMENT...]
 *
 * A tagged socket is a TCP socket of another network namespace than ours. RULES has a
 * line for each thing allowed: "set LEVEL NAME", "get LEVEL NAME", "ioctl NUMBER". What
 * was refused is written to OUTPUT, a line each; the exit status is the program's.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#define SYS_pidfd_getfd 438
#endif
#define SO_NETNS_COOKIE_ 71

static const int watched[] = {
	SYS_connect, SYS_bind, SYS_listen, SYS_accept, SYS_accept4, SYS_getsockname, SYS_getpeername,
	SYS_setsockopt, SYS_getsockopt, SYS_sendto, SYS_sendmsg, SYS_recvmsg, SYS_recvfrom, SYS_ioctl,
};
#define WATCHED (sizeof(watched) / sizeof(watched[0]))

static struct rule {
	char what;
	long level, name;
} rules[256];
static int nrules;

static void die(const char *what)
{
	perror(what);
	_exit(99);
}

static void read_rules(const char *path)
{
	FILE *file = fopen(path, "r");
	char what[16];
	long first;

	if (!file)
		die(path);
	while (nrules < 256 && fscanf(file, "%15s %ld", what, &first) == 2) {
		rules[nrules].what = what[0];
		rules[nrules].level = first;
		if (what[0] != 'i' && fscanf(file, "%ld", &rules[nrules].name) != 1)
			die("rules");
		nrules++;
	}
	fclose(file);
}

static bool listed(char what, long level, long name)
{
	for (int i = 0; i < nrules; i++)
		if (rules[i].what == what && rules[i].level == level && rules[i].name == name)
			return true;
	return false;
}

static uint64_t netns_of(int fd)
{
	uint64_t cookie = 0;
	socklen_t len = sizeof(cookie);

	getsockopt(fd, SOL_SOCKET, SO_NETNS_COOKIE_, &cookie, &len);
	return cookie;
}

static uint64_t own_netns(void)
{
	int fd = socket(AF_UNIX, SOCK_DGRAM, 0);
	uint64_t cookie = netns_of(fd);

	close(fd);
	return cookie;
}

static pid_t group_of(pid_t tid)
{
	char path[64], line[256];
	FILE *file;
	int group = tid;

	snprintf(path, sizeof(path), "/proc/%d/status", tid);
	file = fopen(path, "r");
	while (file && fgets(line, sizeof(line), file))
		if (sscanf(line, "Tgid: %d", &group) == 1)
			break;
	if (file)
		fclose(file);
	return group;
}

static bool tagged(pid_t tid, int fd, uint64_t own)
{
	int pidfd = (int)syscall(SYS_pidfd_open, group_of(tid), 0), copy, protocol = 0;
	socklen_t len = sizeof(protocol);
	bool found;

	if (pidfd < 0)
		return false;
	copy = (int)syscall(SYS_pidfd_getfd, pidfd, fd, 0);
	close(pidfd);
	if (copy < 0)
		return false;
	found = getsockopt(copy, SOL_SOCKET, SO_PROTOCOL, &protocol, &len) == 0 && protocol == IPPROTO_TCP &&
		netns_of(copy) != own;
	close(copy);
	return found;
}

static bool allowed(const struct seccomp_notif *call)
{
	const __u64 *args = call->data.args;
	struct msghdr msg;
	struct iovec here = { &msg, sizeof(msg) }, there = { (void *)(uintptr_t)args[1], sizeof(msg) };

	switch (call->data.nr) {
	case SYS_setsockopt:
		return listed('s', (int)args[1], (int)args[2]);
	case SYS_getsockopt:
		return listed('g', (int)args[1], (int)args[2]);
	case SYS_ioctl:
		return listed('i', (long)(uint32_t)args[1], 0);
	case SYS_sendto:
		return !args[4] && !((int)args[3] & (MSG_FASTOPEN | MSG_ZEROCOPY));
	case SYS_sendmsg:
		if (process_vm_readv((pid_t)call->pid, &here, 1, &there, 1, 0) != (ssize_t)sizeof(msg))
			return true; /* the kernel's own EFAULT */
		return !msg.msg_name && !msg.msg_controllen && !((int)args[2] & (MSG_FASTOPEN | MSG_ZEROCOPY));
	case SYS_recvmsg:
		return !((int)args[2] & MSG_ERRQUEUE);
	case SYS_recvfrom:
		return !((int)args[3] & MSG_ERRQUEUE);
	default:
		return false;
	}
}

static const char *name_of(int nr)
{
	static const char *const names[] = {
		"connect", "bind", "listen", "accept", "accept4", "getsockname", "getpeername",
		"setsockopt", "getsockopt", "sendto", "sendmsg", "recvmsg", "recvfrom", "ioctl",
	};

	for (size_t i = 0; i < WATCHED; i++)
		if (watched[i] == nr)
			return names[i];
	return "?";
}

static int install(void)
{
	struct sock_filter filter[WATCHED + 3];
	struct sock_fprog program = { WATCHED + 3, filter };
	size_t at = 0;

	filter[at++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
	for (size_t i = 0; i < WATCHED; i++)
		filter[at++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned int)watched[i],
							    (unsigned char)(WATCHED - i), 0);
	filter[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	filter[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF);
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
}

static void keep(int listener, pid_t child, FILE *output)
{
	uint64_t own = own_netns();
	int status;

	for (;;) {
		struct pollfd entry = { .fd = listener, .events = POLLIN };
		struct seccomp_notif call = { .id = 0 };
		struct seccomp_notif_resp answer = { .id = 0 };

		if (poll(&entry, 1, 20) > 0 && entry.revents & POLLIN) {
			if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &call) < 0)
				continue;
			answer.id = call.id;
			answer.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
			if (!allowed(&call) && tagged((pid_t)call.pid, (int)call.data.args[0], own)) {
				answer.flags = 0;
				answer.error = -EPERM;
				fprintf(output, "%s %d %d\n", name_of(call.data.nr), (int)call.data.args[1],
					(int)call.data.args[2]);
			}
			ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &answer);
		} else if (waitpid(child, &status, WNOHANG) == child) {
			fclose(output);
			_exit(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
		}
	}
}

int main(int argc, char **argv)
{
	char *preload = getenv("KEEPER_PRELOAD"); /* for the program, not for us */
	int to[2], from[2], number;
	FILE *output;
	pid_t child;
	char go;

	if (argc < 4)
		return 2;
	read_rules(argv[1]);
	output = fopen(argv[2], "w");
	if (!output || pipe(to) < 0 || pipe(from) < 0)
		die("keeper");
	child = fork();
	if (child == 0) {
		fclose(output);
		close(to[1]);
		close(from[0]);
		if (preload)
			setenv("LD_PRELOAD", preload, 1);
		number = install();
		if (number < 0)
			die("seccomp");
		if (write(from[1], &number, sizeof(number)) != sizeof(number) || read(to[0], &go, 1) != 1)
			_exit(99);
		close(number);
		close(to[0]);
		close(from[1]);
		execv(argv[3], argv + 3);
		die(argv[3]);
	}
	if (read(from[0], &number, sizeof(number)) != sizeof(number))
		return 99;
	number = (int)syscall(SYS_pidfd_getfd, syscall(SYS_pidfd_open, child, 0), number, 0);
	if (number < 0)
		die("pidfd_getfd");
	if (write(to[1], "g", 1) != 1)
		return 99;
	keep(number, child, output);
}
