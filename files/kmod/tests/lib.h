/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the test programs share.
 *
 *   host's network namespace            container's network namespace
 *   "router": makes TCP pairs on        forked from the router with their
 *   loopback, tags one end, keeps       copies of the tagged ends, then
 *   the other as the peer               unshare(CLONE_NEWNET)
 */
#ifndef LIB_H
#define LIB_H

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <unistd.h>

enum { OP_TAG = 1, OP_REVOKE = 2, OP_UNTAG = 3 };

struct record {
	uint16_t magic;
	uint8_t version;
	uint8_t op;
	int32_t fd;
	uint64_t cookie;
	uint64_t value;
	uint64_t reserved;
};

extern int failures;
extern bool quiet;	/* count failures, say nothing */

/* Count and say a check; text is printed in full when it failed. */
void check_(bool good, const char *file, int line, const char *format, ...)
	__attribute__((format(printf, 4, 5)));
#define check(good, ...) check_(good, __FILE__, __LINE__, __VA_ARGS__)
/* For what the test itself needs: without it there is no going on. */
#define need(good, ...) do { \
		if (!(good)) { \
			fprintf(stderr, "%s:%d: ", __FILE__, __LINE__); \
			fprintf(stderr, __VA_ARGS__); \
			fprintf(stderr, ": %s\n", strerror(errno)); \
			exit(99); \
		} \
	} while (0)

struct pair {
	int fd;		/* the end that is handed over */
	int peer;
	uint64_t cookie;	/* of fd */
};

enum { PAIR_V4, PAIR_V6, PAIR_MAPPED };

int listener(int kind);
struct pair pair_make(int kind);
void pair_close(struct pair *pair);
uint64_t cookie_of(int fd);

int control_open(void);
struct record record_make(int op, int fd, uint64_t cookie);
/* One record; 0 or -errno. */
int control_one(int op, int fd, uint64_t cookie);
/* Revoke in one write; bytes or -errno. */
ssize_t control_revoke(const uint64_t *cookies, size_t count);
struct pair pair_tagged(int kind);

long stat_read(const char *name);
/* Wait until a statistic has the value; seconds. */
bool stat_wait(const char *name, long value, double seconds);

double now(void);
/* Wait until every thread of the process sleeps. */
bool wait_asleep(pid_t pid, int threads);
/* For exit(): 256 failures are not none. */
int status_of(int count);
void enter_container(bool keep_root);
/* Fork, become a container, run; the exit status is the failures. */
pid_t container_start(int (*run)(void *), void *data, bool keep_root);
int finish(pid_t pid);

int send_fd(int channel, int fd);
int receive_fd(int channel);

/* uring.c: one operation on a ring of its own; the result, or -ENOSYS. */
int uring_one(int opcode, int fd, const void *address, uint32_t length, uint64_t offset,
	      uint32_t flags, bool fixed);
/* Submit, and leave it pending; the ring. Then wait for its result. */
int uring_start(int opcode, int fd, void *address, uint32_t length, bool fixed);
int uring_wait(void);
int uring_socket_command(int fd, uint32_t command, int level, int name, void *value, int length);

/* calls.c: everything that must be refused, and what must not. */
int sweep(int fd, bool outside);

int main_calls(int argc, char **argv);
int main_revoked(int argc, char **argv);
int main_control(int argc, char **argv);
int main_stress(int argc, char **argv);
int main_cost(int argc, char **argv);
int main_hold(int argc, char **argv);
int main_sweep(int argc, char **argv);

#endif
