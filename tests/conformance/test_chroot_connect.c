/* SPDX-License-Identifier: Apache-2.0 */
/* After chroot, setuid and fork, where no path leads anywhere any more, connects and
 * accepts work as before: haproxy, sshd, vsftpd and others live like this. */
#include "conf.h"
#include <grp.h>
#include <sys/stat.h>

static void use(const char *where)
{
	char block[4096];
	uint16_t port = 0;

	for (int i = 0; i < 5; i++) {
		int fd = i & 1 ? conf_dial_nonblock(CONF_ECHO) : conf_dial(CONF_ECHO);

		CHECK(conf_wait(fd, POLLOUT, 8000) && conf_so_error(fd) == 0, "connect");
		if (i & 1)
			conf_path(fd);
		conf_names(fd, CONF_ECHO);
		conf_echo(fd, 3000);
		close(fd);
	}
	int listener = conf_listen(&port, 8);
	unsigned id = conf_dial_me(2, "echo", port, 0);
	for (int i = 0; i < 2; i++) {
		int fd = conf_accept(listener);

		conf_recv_all(fd, block, sizeof(block));
		conf_send_all(fd, block, sizeof(block));
		close(fd);
	}
	conf_all_ok(id, 2);
	close(listener);
	conf_ok("%s", where);
}

static void jail(const char *directory)
{
	CHECK(chroot(directory) == 0, "chroot");
	CHECK(chdir("/") == 0, "chdir");
	CHECK(setgroups(0, NULL) == 0 && setgid(65534) == 0 && setuid(65534) == 0, "giving up root");
}

int main(int argc, char **argv)
{
	char directory[] = "/tmp/conf-jail-XXXXXX";

	conf_init(argc, argv, 30);
	if (geteuid() != 0) {
		conf_note("chroot needs root: skipped");
		return conf_done();
	}
	CHECK(mkdtemp(directory), "mkdtemp");
	CHECK(chmod(directory, 0755) == 0, "chmod");

	/* The first socket call of its life comes after chroot. */
	pid_t pid = conf_fork();
	if (pid == 0) {
		jail(directory);
		use("first connect after chroot");
		conf_leave();
	}
	conf_join(pid);

	/* Used before, then chroot, then fork. */
	pid = conf_fork();
	if (pid == 0) {
		close(conf_dial(CONF_ECHO));
		jail(directory);
		use("connect before and after chroot");
		pid_t inner = conf_fork();
		if (inner == 0) {
			use("a child of a chrooted process");
			conf_leave();
		}
		conf_join(inner);
		conf_leave();
	}
	conf_join(pid);
	rmdir(directory);
	return conf_done();
}
