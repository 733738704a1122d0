// SPDX-License-Identifier: GPL-2.0-only
/* See lib.h. */
#define _GNU_SOURCE
#include "lib.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <grp.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdarg.h>
#include <sys/wait.h>
#include <time.h>

#ifndef SO_COOKIE
#define SO_COOKIE 57
#endif

int failures;
bool quiet;

void check_(bool good, const char *file, int line, const char *format, ...)
{
	va_list list;

	if (good)
		return;
	failures++;
	if (quiet)
		return;
	printf("FAILED %s:%d: ", file, line);
	va_start(list, format);
	vprintf(format, list);
	va_end(list);
	printf("\n");
	fflush(stdout);
}

double now(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec + at.tv_nsec / 1e9;
}

int status_of(int count)
{
	return count > 250 ? 250 : count;
}

/* Field 3 of /proc/PID/task/TID/stat, behind the name in brackets. */
static int asleep(pid_t pid)
{
	char path[300], line[512], *end;
	struct dirent *entry;
	int count = 0;
	FILE *file;
	DIR *tasks;

	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	tasks = opendir(path);
	while (tasks && (entry = readdir(tasks))) {
		if (entry->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "/proc/%d/task/%s/stat", pid, entry->d_name);
		file = fopen(path, "r");
		if (!file)
			continue;
		if (fgets(line, sizeof(line), file) && (end = strrchr(line, ')')) && end[2] == 'S')
			count++;
		fclose(file);
	}
	if (tasks)
		closedir(tasks);
	return count;
}

bool wait_asleep(pid_t pid, int threads)
{
	double end = now() + 20;
	int seen = 0;

	while (seen < 3) {
		if (now() > end)
			return false;
		seen = asleep(pid) >= threads ? seen + 1 : 0;
		usleep(20000);
	}
	return true;
}

uint64_t cookie_of(int fd)
{
	uint64_t cookie = 0;
	socklen_t length = sizeof(cookie);

	getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &length);
	return cookie;
}

static socklen_t loopback(int kind, struct sockaddr_storage *address)
{
	struct sockaddr_in *v4 = (struct sockaddr_in *)address;
	struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)address;

	memset(address, 0, sizeof(*address));
	if (kind == PAIR_V4) {
		v4->sin_family = AF_INET;
		v4->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
		return sizeof(*v4);
	}
	v6->sin6_family = AF_INET6;
	need(inet_pton(AF_INET6, kind == PAIR_V6 ? "::1" : "::ffff:127.0.0.1",
		       &v6->sin6_addr) == 1, "inet_pton");
	return sizeof(*v6);
}

int listener(int kind)
{
	struct sockaddr_storage address;
	socklen_t length = loopback(kind, &address);
	int fd = socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

	need(fd >= 0 && !bind(fd, (struct sockaddr *)&address, length) && !listen(fd, 128),
	     "listener");
	return fd;
}

struct pair pair_make(int kind)
{
	struct sockaddr_storage address;
	socklen_t length = sizeof(address);
	int waiting = listener(kind);
	struct pair pair;

	need(!getsockname(waiting, (struct sockaddr *)&address, &length), "getsockname");
	pair.fd = socket(address.ss_family, SOCK_STREAM, 0);
	need(pair.fd >= 0 && !connect(pair.fd, (struct sockaddr *)&address, length), "connect");
	pair.peer = accept(waiting, NULL, NULL);
	need(pair.peer >= 0, "accept");
	close(waiting);
	pair.cookie = cookie_of(pair.fd);
	return pair;
}

struct pair pair_tagged(int kind)
{
	struct pair pair = pair_make(kind);
	int error = control_one(OP_TAG, pair.fd, pair.cookie);

	errno = -error;
	need(!error, "tag");
	return pair;
}

void pair_close(struct pair *pair)
{
	close(pair->fd);
	close(pair->peer);
}

int control_open(void)
{
	return open("/proc/slim_kmod/control", O_WRONLY | O_CLOEXEC);
}

struct record record_make(int op, int fd, uint64_t cookie)
{
	return (struct record){ .magic = 0x4b53, .version = 1, .op = op, .fd = fd,
				.cookie = cookie };
}

int control_one(int op, int fd, uint64_t cookie)
{
	struct record record = record_make(op, fd, cookie);
	int control = control_open(), error = 0;

	if (control < 0)
		return -errno;
	if (write(control, &record, sizeof(record)) != sizeof(record))
		error = -errno;
	close(control);
	return error;
}

ssize_t control_revoke(const uint64_t *cookies, size_t count)
{
	struct record *records = calloc(count, sizeof(*records));
	int control = control_open();
	ssize_t done;
	size_t i;

	need(records && control >= 0, "control");
	for (i = 0; i < count; i++)
		records[i] = record_make(OP_REVOKE, -1, cookies[i]);
	done = write(control, records, count * sizeof(*records));
	if (done < 0)
		done = -errno;
	close(control);
	free(records);
	return done;
}

long stat_read(const char *name)
{
	FILE *file = fopen("/proc/slim_kmod/stats", "r");
	char word[64];
	long value, found = -1;

	need(file, "stats");
	while (fscanf(file, "%63s %ld", word, &value) == 2)
		if (!strcmp(word, name))
			found = value;
	fclose(file);
	return found;
}

bool stat_wait(const char *name, long value, double seconds)
{
	double end = now() + seconds;

	while (stat_read(name) != value) {
		if (now() > end)
			return false;
		usleep(10000);
	}
	return true;
}

void enter_container(bool keep_root)
{
	need(!unshare(CLONE_NEWNET), "unshare");
	if (keep_root)
		return;
	need(!setgroups(0, NULL) && !setresgid(65534, 65534, 65534) &&
	     !setresuid(65534, 65534, 65534), "setresuid");
}

pid_t container_start(int (*run)(void *), void *data, bool keep_root)
{
	int ready[2];
	pid_t pid;
	char byte;

	fflush(NULL);
	need(!pipe(ready), "pipe");
	pid = fork();
	need(pid >= 0, "fork");
	if (pid) {
		close(ready[1]);
		need(read(ready[0], &byte, 1) == 1, "container");
		close(ready[0]);
		return pid;
	}
	failures = 0;
	close(ready[0]);
	enter_container(keep_root);
	need(write(ready[1], "", 1) == 1, "container");
	close(ready[1]);
	exit(status_of(run(data)));
}

int finish(pid_t pid)
{
	int status;

	need(waitpid(pid, &status, 0) == pid, "waitpid");
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int send_fd(int channel, int fd)
{
	char control[CMSG_SPACE(sizeof(int))] = "", byte = 0;
	struct iovec data = { &byte, 1 };
	struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1,
				  .msg_control = control, .msg_controllen = sizeof(control) };
	struct cmsghdr *head = CMSG_FIRSTHDR(&message);

	head->cmsg_level = SOL_SOCKET;
	head->cmsg_type = SCM_RIGHTS;
	head->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(head), &fd, sizeof(int));
	return sendmsg(channel, &message, 0) == 1 ? 0 : -1;
}

int receive_fd(int channel)
{
	char control[CMSG_SPACE(sizeof(int))], byte;
	struct iovec data = { &byte, 1 };
	struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1,
				  .msg_control = control, .msg_controllen = sizeof(control) };
	struct cmsghdr *head;
	int fd;

	if (recvmsg(channel, &message, 0) != 1)
		return -1;
	head = CMSG_FIRSTHDR(&message);
	if (!head || head->cmsg_type != SCM_RIGHTS)
		return -1;
	memcpy(&fd, CMSG_DATA(head), sizeof(int));
	return fd;
}
