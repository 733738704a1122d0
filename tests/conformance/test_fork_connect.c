/* SPDX-License-Identifier: Apache-2.0 */
/* fork before, during and after connect; parent and child both connect. */
#include "conf.h"

int main(int argc, char **argv)
{
	char got[4];
	pid_t pid;
	int fd;

	conf_init(argc, argv, 40);
	/* Socket made before fork, connected in the child. */
	fd = conf_socket(0);
	pid = conf_fork();
	if (pid == 0) {
		CHECK(conf_connect(fd, CONF_ECHO) == 0, "connect in the child");
		conf_path(fd);
		conf_names(fd, CONF_ECHO);
		conf_echo(fd, 5000);
		conf_leave();
	}
	conf_join(pid);
	close(fd);
	conf_ok("made by the parent, connected by the child");

	/* Connected before fork: both use it; it ends with the last. */
	fd = conf_dial(CONF_ECHO);
	pid = conf_fork();
	if (pid == 0) {
		conf_names(fd, CONF_ECHO);
		conf_echo(fd, 5000);
		close(fd);
		conf_leave();
	}
	conf_join(pid);
	conf_names(fd, CONF_ECHO);
	conf_echo(fd, 5000);
	close(fd);
	conf_ok("connected by the parent, used by both");

	/* In progress while forking: the child finishes it. */
	fd = conf_dial_nonblock(CONF_ECHO);
	pid = conf_fork();
	if (pid == 0) {
		CHECK(conf_wait(fd, POLLOUT, 8000) && conf_so_error(fd) == 0, "connect");
		conf_path(fd);
		conf_names(fd, CONF_ECHO);
		conf_echo(fd, 3000);
		close(fd);
		conf_leave();
	}
	close(fd);
	conf_join(pid);
	conf_ok("in progress while forking, finished by the child");

	fd = conf_dial_nonblock(CONF_ECHO);
	pid = conf_fork();
	if (pid == 0) {
		close(fd);
		conf_leave();
	}
	CHECK(conf_wait(fd, POLLOUT, 8000) && conf_so_error(fd) == 0, "connect");
	conf_path(fd);
	conf_names(fd, CONF_ECHO);
	conf_join(pid);
	conf_echo(fd, 3000);
	close(fd);
	conf_ok("in progress while forking, finished by the parent");

	/* Everybody connects at once after a warm connection existed. */
	close(conf_dial(CONF_ECHO));
	pid_t children[8];
	for (int i = 0; i < 8; i++) {
		children[i] = conf_fork();
		if (children[i] == 0) {
			for (int k = 0; k < 10; k++) {
				fd = conf_dial(CONF_ECHO);
				conf_names(fd, CONF_ECHO);
				unsigned number = (unsigned)getpid() << 8 | (unsigned)k, back = 0;
				conf_send_all(fd, &number, sizeof(number));
				conf_recv_all(fd, &back, sizeof(back));
				CHECK(number == back, "another's data");
				close(fd);
			}
			conf_leave();
		}
	}
	for (int k = 0; k < 10; k++) {
		fd = conf_dial(CONF_ECHO);
		conf_send_all(fd, "ping", 4);
		conf_recv_all(fd, got, 4);
		close(fd);
	}
	for (int i = 0; i < 8; i++)
		conf_join(children[i]);
	conf_ok("eight children and the parent at once");
	return conf_done();
}
