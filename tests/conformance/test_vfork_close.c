/* SPDX-License-Identifier: Apache-2.0 */
/* A vfork child closes descriptors in its own table: the parent's connections,
 * whose memory the child shares, keep their names. */
#include "conf.h"

extern char **environ;

int main(int argc, char **argv)
{
	char *args[] = { "/bin/true", NULL };
	uint16_t port = 0;

	conf_init(argc, argv, 20);
	int fd = conf_dial(CONF_ECHO), fresh = conf_socket(0), listener = conf_listen(&port, 8);
	pid_t pid = vfork();
	if (pid == 0) {
		close(fd);
		close(fresh);
		close(listener);
		dup2(1, fd);
		execve("/bin/true", args, environ);
		_exit(9);
	}
	conf_join(pid);
	conf_names(fd, CONF_ECHO);
	conf_echo(fd, 5000);
	conf_ok("connection");
	CHECK(conf_connect(fresh, CONF_ECHO) == 0, "connect");
	conf_path(fresh);
	conf_names(fresh, CONF_ECHO);
	conf_echo(fresh, 3000);
	conf_ok("fresh socket");
	struct sockaddr_storage sa;
	CHECK(getsockname(listener, (struct sockaddr *)&sa, &(socklen_t){ sizeof(sa) }) == 0, "getsockname");
	CHECK(conf_same(&sa, conf.self, port), "listener is called %s", conf_text(&sa));
	unsigned id = conf_dial_me(1, "echo", port, 0);
	char block[4096];
	int c = conf_accept(listener);
	conf_recv_all(c, block, sizeof(block));
	conf_send_all(c, block, sizeof(block));
	conf_all_ok(id, 1);
	conf_ok("listener");
	return conf_done();
}
