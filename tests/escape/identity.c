/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who carries the attempts out.
 *   user    uid 65534, no capability
 *   root    uid 0 of the container, without the capabilities that secure mode refuses
 *   userns  root of a user namespace below that, with every capability in it
 *   admin   uid 0 with everything that the container was started with: proves rows that
 *           need NET_ADMIN, NET_RAW or SYS_ADMIN; secure mode refuses such containers
 */
#include "escape.h"

#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <sched.h>
#include <sys/prctl.h>

const char *const identities[] = { "user", "root", "userns", "admin", NULL };

#define NOBODY 65534

static bool put(const char *path, const char *text)
{
	int fd = (int)raw(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CLOEXEC, 0);
	bool ok = fd >= 0 && raw(SYS_write, fd, text, strlen(text)) == (long)strlen(text);

	if (fd >= 0)
		raw(SYS_close, fd);
	return ok;
}

/* Take NET_ADMIN, NET_RAW and SYS_ADMIN away for good. */
static bool shed(void)
{
	static const int lost[] = { CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_ADMIN };
	struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2];

	for (size_t i = 0; i < sizeof(lost) / sizeof(lost[0]); i++)
		if (prctl(PR_CAPBSET_DROP, lost[i], 0, 0, 0) < 0)
			return false;
	if (raw(SYS_capget, &head, data) < 0)
		return false;
	for (size_t i = 0; i < sizeof(lost) / sizeof(lost[0]); i++) {
		uint32_t bit = ~(1u << (lost[i] % 32));

		data[lost[i] / 32].effective &= bit;
		data[lost[i] / 32].permitted &= bit;
		data[lost[i] / 32].inheritable &= bit;
	}
	return raw(SYS_capset, &head, data) == 0;
}

bool become(const char *identity, char *why, size_t size)
{
	const char *step = "";

	errno = 0;
	if (strcmp(identity, "admin") == 0)
		return true;
	if (strcmp(identity, "user") == 0) {
		step = "setuid";
		if (setgroups(0, NULL) < 0 || setresgid(NOBODY, NOBODY, NOBODY) < 0 ||
		    setresuid(NOBODY, NOBODY, NOBODY) < 0)
			goto failed;
		/* Else the kernel takes us for a set-uid program, and pidfd_getfd fails. */
		prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
		return true;
	}
	step = "capset";
	if (!shed())
		goto failed;
	if (strcmp(identity, "root") == 0)
		return true;
	if (strcmp(identity, "userns") == 0) {
		step = "unshare(CLONE_NEWUSER)";
		if (unshare(CLONE_NEWUSER) < 0)
			goto failed;
		step = "uid_map";
		if (!put("/proc/self/setgroups", "deny") || !put("/proc/self/uid_map", "0 0 1\n") ||
		    !put("/proc/self/gid_map", "0 0 1\n"))
			goto failed;
		prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
		return true;
	}
	step = "unknown identity";
failed:
	snprintf(why, size, "%s: %s: %s", identity, step, strerror(errno));
	return false;
}
