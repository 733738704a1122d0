// SPDX-License-Identifier: GPL-2.0-only
/*
 * /proc/slim_kmod/: who may use it, what it answers to what is wrong, and that
 * nonsense does it no harm.
 */
#define _GNU_SOURCE
#include "lib.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <linux/capability.h>

static const char *const files[] = { "control", "stats", "tags", "version" };

/* Every file must refuse, and so must the descriptors that root has opened. */
static int refused_all(void *data)
{
	struct record record = record_make(OP_REVOKE, -1, 1);
	const int *opened = data;
	char path[64], byte;
	size_t i;
	int fd;

	for (i = 0; i < sizeof(files) / sizeof(*files); i++) {
		snprintf(path, sizeof(path), "/proc/slim_kmod/%s", files[i]);
		fd = open(path, i ? O_RDONLY : O_WRONLY);
		check(fd < 0 && (errno == EPERM || errno == EACCES), "%s was opened", path);
		if (i)
			check(pread(opened[i], &byte, 1, 0) < 0 && errno == EPERM,
			      "reading root's descriptor of %s: %s", path, strerror(errno));
	}
	check(write(opened[0], &record, sizeof(record)) < 0 && errno == EPERM,
	      "writing root's descriptor: %s", strerror(errno));
	return failures;
}

/* uid 0 of a user namespace of its own. */
static int refused_userns(void *data)
{
	need(!unshare(CLONE_NEWUSER), "unshare");
	return refused_all(data);
}

/* All capabilities of the host, but in a pid namespace of its own. */
static int refused_pidns(void *data)
{
	pid_t pid;

	need(!unshare(CLONE_NEWPID), "unshare");
	pid = fork();
	if (!pid)
		exit(status_of(refused_all(data)));
	return finish(pid);
}

/* uid 0 without the capability, as runtimes start containers. */
static int refused_nocap(void *data)
{
	struct __user_cap_header_struct head = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct sets[2];

	need(!syscall(SYS_capget, &head, sets), "capget");
	sets[0].effective &= ~(1U << CAP_NET_ADMIN);
	sets[0].permitted &= ~(1U << CAP_NET_ADMIN);
	need(!syscall(SYS_capset, &head, sets), "capset");
	return refused_all(data);
}

static void test_permissions(void)
{
	int opened[sizeof(files) / sizeof(*files)] = { control_open() };
	struct stat status;
	char path[64], byte;
	size_t i;

	need(opened[0] >= 0, "control");
	for (i = 1; i < sizeof(files) / sizeof(*files); i++) {
		snprintf(path, sizeof(path), "/proc/slim_kmod/%s", files[i]);
		opened[i] = open(path, O_RDONLY);
		need(opened[i] >= 0 && pread(opened[i], &byte, 1, 0) == 1, "%s", path);
	}
	check(!finish(container_start(refused_all, opened, false)), "nobody");
	check(!finish(container_start(refused_userns, opened, true)), "root of a user namespace");
	check(!finish(container_start(refused_pidns, opened, true)), "root of a pid namespace");
	check(!finish(container_start(refused_nocap, opened, true)), "root without CAP_NET_ADMIN");
	for (i = 0; i < sizeof(files) / sizeof(*files); i++)
		close(opened[i]);
	check(!stat("/proc/slim_kmod", &status) && (status.st_mode & 0777) == 0500, "directory: %o",
	      status.st_mode);
	check(!stat("/proc/slim_kmod/control", &status) && (status.st_mode & 0777) == 0600,
	      "control: %o", status.st_mode);
}

static ssize_t raw(const void *data, size_t length)
{
	int control = control_open();
	ssize_t done = write(control, data, length);

	if (done < 0)
		done = -errno;
	close(control);
	return done;
}

static void test_errors(void)
{
	struct pair pair = pair_make(PAIR_V4);
	static struct record many[1025];
	struct record record = record_make(OP_TAG, pair.fd, pair.cookie), bad;
	uint64_t cookie = pair.cookie;
	int udp = socket(AF_INET, SOCK_DGRAM, 0), local = socket(AF_UNIX, SOCK_STREAM, 0);
	int waiting = listener(PAIR_V4), copy, i;
	struct record three[3];

	check(raw(&record, 0) == -EINVAL, "0 bytes");
	check(raw(&record, 31) == -EINVAL, "31 bytes");
	for (i = 0; i < 1025; i++)
		many[i] = record;
	check(raw(many, sizeof(many)) == -EINVAL, "1025 records");
	check(raw(many, sizeof(record) + 1) == -EINVAL, "33 bytes");
	check(raw((void *)8, sizeof(record)) == -EFAULT, "a bad address");
#define BAD(field, wrong) do { \
		bad = record; \
		bad.field = wrong; \
		check(raw(&bad, sizeof(bad)) == -EINVAL, #field " " #wrong); \
		three[0] = record; \
		three[1] = bad; \
		check(raw(three, 2 * sizeof(bad)) == -EINVAL, "a good record and " #field); \
	} while (0)
	BAD(magic, 0x534b);
	BAD(version, 0);
	BAD(version, 2);
	BAD(op, 0);
	BAD(op, 4);
	BAD(op, 255);
	BAD(fd, -1);
	BAD(cookie, 0);
	BAD(value, 1);
	BAD(reserved, 1);
	bad = record_make(OP_REVOKE, 3, cookie);
	check(raw(&bad, sizeof(bad)) == -EINVAL, "REVOKE with a descriptor");
	check(stat_read("tags") == 0, "something was tagged");

	check(control_one(OP_TAG, 1000, cookie) == -EBADF, "no descriptor");
	check(control_one(OP_TAG, udp, cookie_of(udp)) == -EPROTOTYPE, "UDP");
	check(control_one(OP_TAG, local, cookie_of(local)) == -EPROTOTYPE, "AF_UNIX");
	check(control_one(OP_TAG, 1, cookie) == -EPROTOTYPE, "no socket");
	check(control_one(OP_TAG, waiting, cookie_of(waiting)) == -EINVAL, "a listener");
	check(control_one(OP_TAG, pair.fd, cookie + 1) == -ESTALE, "another cookie");
	check(control_one(OP_UNTAG, pair.fd, cookie) == -ENOENT, "UNTAG without a tag");
	check(control_one(OP_REVOKE, -1, cookie) == -ENOENT, "REVOKE without a tag");
	check(control_one(OP_TAG, pair.fd, cookie) == 0, "TAG");
	check(control_one(OP_TAG, pair.fd, cookie) == 0, "TAG again");
	check(control_one(OP_TAG, pair.fd, cookie + 1) == -ESTALE, "TAG again, another cookie");
	check(stat_read("tags") == 1, "tags: %ld", stat_read("tags"));
	copy = dup(pair.fd);
	check(control_one(OP_UNTAG, pair.fd, cookie) == -EBUSY, "UNTAG with a copy");
	close(copy);
	check(control_one(OP_UNTAG, pair.fd, cookie + 1) == -ESTALE, "UNTAG, another cookie");
	check(control_one(OP_UNTAG, pair.fd, cookie) == 0, "UNTAG");
	check(stat_read("tags") == 0, "tags: %ld", stat_read("tags"));

	/* The first error ends the write, REVOKE's ENOENT does not. */
	three[0] = record_make(OP_REVOKE, -1, 77777777777);
	three[1] = record;
	three[2] = record_make(OP_TAG, 1000, cookie);
	check(raw(three, sizeof(three)) == 2 * sizeof(record), "two of three");
	check(control_one(OP_REVOKE, -1, cookie) == 0, "REVOKE");
	check(control_one(OP_TAG, pair.fd, cookie) == -EALREADY, "TAG when revoked");
	check(control_one(OP_UNTAG, pair.fd, cookie) == -EALREADY, "UNTAG when revoked");
	pair_close(&pair);
	close(udp);
	close(local);
	close(waiting);
	check(stat_wait("tags", 0, 5), "tags: %ld", stat_read("tags"));
}

static void test_reports(void)
{
	struct pair pair = pair_tagged(PAIR_V4);
	char line[512], expected[64], state[16], text[32];
	unsigned long long cookie, age;
	FILE *file, *source;
	int pid;

	file = fopen("/proc/slim_kmod/tags", "r");
	need(file && fgets(line, sizeof(line), file), "tags");
	check(!strcmp(line, "cookie state age_ms holder_pid\n"), "tags: %s", line);
	check(fscanf(file, "%llu %15s %llu %d", &cookie, state, &age, &pid) == 4 &&
	      cookie == pair.cookie && !strcmp(state, "live") && age < 60000 && pid == getpid(),
	      "tags: %llu %s %llu %d", cookie, state, age, pid);
	check(fgetc(file) == '\n' && fgetc(file) == EOF, "tags: more");
	fclose(file);
	file = fopen("/proc/slim_kmod/version", "r");
	need(file && fgets(line, sizeof(line), file), "version");
	snprintf(expected, sizeof(expected), "1 ");
	check(!strncmp(line, expected, 2) && strstr(line, " security_socket_setsockopt,"),
	      "version: %s", line);
	fclose(file);
	source = fopen("/sys/module/slim_kmod/srcversion", "r");
	need(source && fscanf(source, "%31s", text) == 1, "srcversion");
	fclose(source);
	snprintf(expected, sizeof(expected), " srcversion=%s loaded_ns=", text);
	check(strstr(line, expected) && atoll(strstr(line, expected) + strlen(expected)) > 0,
	      "version: %s", line);
	pair_close(&pair);
	check(stat_wait("tags", 0, 5), "tags: %ld", stat_read("tags"));
}

/* Deterministic: a failure can be had again. */
static uint32_t dice(uint32_t *state)
{
	*state = *state * 1664525 + 1013904223;
	return *state >> 8;
}

static int run_fuzz(void *data)
{
	uint32_t state = *(uint32_t *)data;
	static unsigned char bytes[40000];
	struct record *record = (struct record *)bytes;
	struct pair pair = pair_make(PAIR_V4);
	int control = control_open();
	unsigned int turn, count, i;
	size_t length;
	ssize_t done;

	need(control >= 0, "control");
	for (turn = 0; turn < 1500; turn++) {
		count = 1 + dice(&state) % (turn % 50 ? 8 : 1100);
		for (i = 0; i < count * sizeof(*record); i++)
			bytes[i] = dice(&state);
		for (i = 0; i < count && turn % 4; i++) {
			record[i] = record_make(1 + dice(&state) % 3, dice(&state) % 20,
						dice(&state) % 4 ? pair.cookie : dice(&state));
			if (record[i].op == OP_REVOKE)
				record[i].fd = -1;
			if (!(dice(&state) % 30))
				bytes[i * 32 + dice(&state) % 32] ^= 1 << dice(&state) % 8;
		}
		length = count * sizeof(*record) + (dice(&state) % 10 ? 0 : dice(&state) % 32);
		done = write(control, bytes, length);
		check(done < 0 || (!(done % 32) && (size_t)done <= length), "%zd of %zu", done, length);
		if (!(turn % 40)) {
			pair_close(&pair);
			pair = pair_make(PAIR_V6);
		}
	}
	pair_close(&pair);
	return failures;
}

static void test_fuzz(void)
{
	uint32_t seeds[2] = { 1, 2 };
	pid_t pids[2];
	int i;

	for (i = 0; i < 2; i++) {
		fflush(NULL);
		pids[i] = fork();
		if (!pids[i])
			exit(status_of(run_fuzz(&seeds[i])));
	}
	for (i = 0; i < 2; i++)
		check(!finish(pids[i]), "fuzz %d", i);
	check(stat_wait("tags", 0, 10), "tags: %ld", stat_read("tags"));
}

int main_control(int argc, char **argv)
{
	(void)argc;
	(void)argv;
	test_permissions();
	test_errors();
	test_reports();
	test_fuzz();
	return failures;
}

/* Holds a tagged socket until its standard input ends: for rmmod's refusal. */
int main_hold(int argc, char **argv)
{
	struct pair pair = pair_tagged(PAIR_V4);
	char byte;

	if (argc == 3 && !strcmp(argv[2], "revoked"))
		control_revoke(&pair.cookie, 1);
	printf("holding\n");
	fflush(stdout);
	while (read(0, &byte, 1) > 0)
		;
	return 0;
}
