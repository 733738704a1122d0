// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tag, untag, revoke, fork, exit, pass, try to unload, from every CPU at once.
 *
 *   N workers, each: a pair, tag, hand to a container child that reads and
 *   writes and forks, pass through a Unix socket, revoke or close or exit
 *   one that reads "tags" and "stats"; one that tries rmmod
 *
 * stress SECONDS: one more tag lives all the while, so that rmmod must fail.
 * reload SECONDS: none does, and one worker is enough: whenever its socket has
 * gone, rmmod and insmod.
 */
#define _GNU_SOURCE
#include "lib.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static uint32_t seed;
static bool reloading;	/* the module comes and goes */

static uint32_t dice(uint32_t sides)
{
	seed = seed * 1664525 + 1013904223;
	return (seed >> 8) % sides;
}

static int run_child(void *data)
{
	int fd = *(int *)data, copy = dup(fd), turn;
	struct epoll_event event = { .events = EPOLLRDHUP };
	struct pollfd poller = { fd, POLLIN, 0 };
	char bytes[512] = "";

	/* The revocation may have come first. */
	if (dice(2))
		epoll_ctl(epoll_create1(0), EPOLL_CTL_ADD, fd, &event);
	for (turn = 0; turn < 20; turn++) {
		if (send(fd, bytes, sizeof(bytes), MSG_NOSIGNAL | MSG_DONTWAIT) < 0 &&
		    (errno == ECONNABORTED || errno == EBADF))
			break;
		poll(&poller, 1, 1);
		check(recv(copy, bytes, sizeof(bytes), MSG_DONTWAIT), "a clean end");
		if (turn == 10 && !fork()) {
			check(recv(fd, bytes, sizeof(bytes), 0), "a clean end");
			exit(status_of(failures));
		}
	}
	while (wait(&turn) > 0)
		check(WIFEXITED(turn) && !WEXITSTATUS(turn), "grandchild: %x", turn);
	return failures;
}

/* ENOENT: no file; EIO: of a module that has gone; ESHUTDOWN: it is going. */
static bool unloaded(int error)
{
	return reloading && (error == -ENOENT || error == -EIO || error == -ESHUTDOWN);
}

/* Returns false where there was no module. */
static bool one(void)
{
	struct pair pair = pair_make(dice(3));
	pid_t pids[3];
	int count = 0, channel[2], i, error;

	error = control_one(OP_TAG, pair.fd, pair.cookie);
	if (unloaded(error)) {
		pair_close(&pair);
		return false;
	}
	check(!error, "tag: %d", error);
	switch (dice(8)) {
	case 0:
		check(!control_one(OP_UNTAG, pair.fd, pair.cookie), "untag");
		pair_close(&pair);
		return true;
	case 1:
		pair_close(&pair);
		return true;
	case 2:
		need(!socketpair(AF_UNIX, SOCK_STREAM, 0, channel), "socketpair");
		send_fd(channel[0], pair.fd);
		if (dice(2))
			control_revoke(&pair.cookie, 1);
		close(channel[0]);
		close(channel[1]);
		pair_close(&pair);
		return true;
	}
	for (count = 0; count < (int)dice(3) + 1; count++)
		pids[count] = container_start(run_child, &pair.fd, false);
	close(pair.fd);
	usleep(dice(20000));
	if (dice(4) == 0)
		kill(pids[0], SIGSTOP);
	/* The children may have ended, and the module with their socket. */
	error = control_one(OP_REVOKE, -1, pair.cookie);
	check(!error || error == -ENOENT || unloaded(error), "revoke: %d", error);
	/* Now and then the sweeper comes first. */
	if (reloading && dice(4) == 0)
		usleep(1000000 + dice(20000));
	kill(pids[0], SIGCONT);
	for (i = 0; i < count; i++) {
		error = finish(pids[i]);
		check(!error, "child: %d", error);
	}
	close(pair.peer);
	return true;
}

static void read_all(const char *path)
{
	int fd = open(path, O_RDONLY);
	char bytes[8192];

	check(fd >= 0 || unloaded(-errno), "%s: %s", path, strerror(errno));
	while (fd >= 0 && read(fd, bytes, sizeof(bytes)) > 0)
		;
	close(fd);
}

/* Take the module away if nobody needs it at the moment, and put it back. */
static bool reload(void)
{
	int module, error;

	if (syscall(SYS_delete_module, "slim_kmod", O_NONBLOCK)) {
		check(errno == EWOULDBLOCK, "rmmod: %s", strerror(errno));
		return false;
	}
	module = open("slim_kmod.ko", O_RDONLY | O_CLOEXEC);
	error = module < 0 || syscall(SYS_finit_module, module, "", 0);
	check(!error, "insmod: %s", strerror(errno));
	close(module);
	return true;
}

/* The fourth worker's turn. */
static bool other(void)
{
	read_all("/proc/slim_kmod/tags");
	read_all("/proc/slim_kmod/stats");
	if (reloading)
		return reload();
	/* delete_module: a tag lives, so it must refuse */
	check(syscall(SYS_delete_module, "slim_kmod", O_NONBLOCK) < 0 && errno == EWOULDBLOCK,
	      "rmmod: %s", strerror(errno));
	usleep(20000);
	return true;
}

int main_stress(int argc, char **argv)
{
	double end = now() + (argc > 2 ? atof(argv[2]) : 10);
	struct pair pin = pair_make(PAIR_V4);
	int i, first, turns = 0;
	pid_t pids[4];

	reloading = !strcmp(argv[1], "reload");
	if (!reloading)
		need(!control_one(OP_TAG, pin.fd, pin.cookie), "tag");
	first = reloading ? 2 : 0;
	for (i = first; i < 4; i++) {
		fflush(NULL);
		pids[i] = fork();
		if (pids[i])
			continue;
		close(pin.fd);
		seed = 1000 + i;
		while (now() < end)
			turns += i == 3 ? other() : one();
		check(turns, "worker %d: never a turn", i);
		printf("stress: worker %d: %d turns\n", i, turns);
		exit(status_of(failures));
	}
	for (i = first; i < 4; i++)
		check(!finish(pids[i]), "worker %d", i);
	pair_close(&pin);
	check(stat_wait("tags", 0, 40), "tags: %ld", stat_read("tags"));
	printf("stress: %ld tagged, %ld revoked, %ld descriptors closed, %ld leftovers\n",
	       stat_read("tagged_total"), stat_read("revoked_total"), stat_read("closed_total"),
	       stat_read("leftovers_total"));
	return failures;
}
