/* SPDX-License-Identifier: Apache-2.0 */
/* After exec a connected socket still has its virtual names: fork+exec,
 * vfork+exec, posix_spawn, execve with an empty environment. */
#include "conf.h"
#include <spawn.h>

extern char **environ;

/* The second life: argv is PROGRAM PEER PORT --fd N */
static int second_life(int fd)
{
	conf_names(fd, CONF_ECHO);
	conf_echo(fd, 5000);
	/* And new ones can be made. */
	int other = conf_dial(CONF_ECHO);
	conf_names(other, CONF_ECHO);
	conf_echo(other, 3000);
	close(other);
	CHECK(dup2(fd, 99) == 99, "dup2");
	conf_names(99, CONF_ECHO);
	return 0;
}

int main(int argc, char **argv)
{
	conf_init(argc, argv, 30);
	if (argc == 5)
		return second_life(atoi(argv[4]));

	char number[16];
	char *args[] = { "/proc/self/exe", argv[1], argv[2], "--fd", number, NULL };
	char *six[] = { "CONF_FAMILY=6", NULL }, *four[] = { NULL };
	char **bare = conf.family == AF_INET6 ? six : four;
	int fd = conf_dial(CONF_ECHO);
	pid_t pid;

	snprintf(number, sizeof(number), "%d", fd);
	pid = fork();
	if (pid == 0) {
		execv(args[0], args);
		_exit(9);
	}
	conf_join(pid);
	conf_ok("fork and execv");

	pid = vfork();
	if (pid == 0) {
		execve(args[0], args, environ);
		_exit(9);
	}
	conf_join(pid);
	conf_names(fd, CONF_ECHO);
	conf_echo(fd, 3000);
	conf_ok("vfork and execve");

	/* /proc/self/exe names the spawned helper's own parent image: resolve it. */
	char self[4096];
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
	CHECK(n > 0, "readlink");
	self[n] = 0;
	args[0] = self;
	errno = posix_spawn(&pid, self, NULL, NULL, args, environ);
	CHECK(errno == 0, "posix_spawn");
	conf_join(pid);
	conf_ok("posix_spawn");
	errno = posix_spawnp(&pid, self, NULL, NULL, args, environ);
	CHECK(errno == 0, "posix_spawnp");
	conf_join(pid);
	conf_ok("posix_spawnp");

	pid = fork();
	if (pid == 0) {
		execve(self, args, bare);
		_exit(9);
	}
	conf_join(pid);
	conf_ok("execve with an empty environment");
	errno = posix_spawn(&pid, self, NULL, NULL, args, bare);
	CHECK(errno == 0, "posix_spawn");
	conf_join(pid);
	conf_ok("posix_spawn with an empty environment");

	pid = fork();
	if (pid == 0) {
		execl(self, self, argv[1], argv[2], "--fd", number, (char *)NULL);
		_exit(9);
	}
	conf_join(pid);
	pid = fork();
	if (pid == 0) {
		execle(self, self, argv[1], argv[2], "--fd", number, (char *)NULL, bare);
		_exit(9);
	}
	conf_join(pid);
	pid = fork();
	if (pid == 0) {
		execlp(self, self, argv[1], argv[2], "--fd", number, (char *)NULL);
		_exit(9);
	}
	conf_join(pid);
	pid = fork();
	if (pid == 0) {
		execvp(self, args);
		_exit(9);
	}
	conf_join(pid);
	pid = fork();
	if (pid == 0) {
		execvpe(self, args, bare);
		_exit(9);
	}
	conf_join(pid);
#ifdef __GLIBC__
	pid = fork();
	if (pid == 0) {
		int image = open(self, O_RDONLY | O_CLOEXEC);
		fexecve(image, args, environ);
		_exit(9);
	}
	conf_join(pid);
#endif
#ifdef __GLIBC__ /* the machine's shell is: a musl library cannot be preloaded there */
	char command[5000];
	snprintf(command, sizeof(command), "exec %s %s %s --fd %d", self, argv[1], argv[2], fd);
	int status = system(command);
	CHECK(status == 0, "system() gives 0x%x", status);
	FILE *out = popen(command, "r");
	CHECK(out, "popen");
	char line[256];
	while (fgets(line, sizeof(line), out))
		fputs(line, stdout);
	CHECK(pclose(out) == 0, "popen's child");
#endif
	conf_ok("the rest of the exec family, system and popen");

	/* In progress during exec: the new program finishes it. */
	int busy = conf_dial_nonblock(CONF_ECHO);
	CHECK(conf_wait(busy, POLLOUT, 8000), "connect");
	conf_nonblock(busy, false);
	snprintf(number, sizeof(number), "%d", busy);
	pid = fork();
	if (pid == 0) {
		execv(self, args);
		_exit(9);
	}
	conf_join(pid);
	close(busy);
	conf_ok("exec before the outcome was asked for");

	/* FD_CLOEXEC works still. */
	CHECK(fcntl(fd, F_SETFD, FD_CLOEXEC) == 0, "F_SETFD");
#ifdef __GLIBC__
	snprintf(command, sizeof(command), "test ! -e /proc/self/fd/%d", fd);
	CHECK(system(command) == 0, "a close-on-exec descriptor is open after exec");
#endif
	conf_names(fd, CONF_ECHO);
	close(fd);
	conf_ok("close-on-exec");
	return conf_done();
}
