/* SPDX-License-Identifier: Apache-2.0 */
/* Descriptor number, FD_CLOEXEC, O_NONBLOCK and ioctl(FIONBIO) survive connect. */
#include "conf.h"
#include <sys/ioctl.h>

int main(int argc, char **argv)
{
	conf_init(argc, argv, 20);
	for (int bits = 0; bits < 8; bits++) {
		int nonblock = bits & 1, cloexec = bits & 2, late = bits & 4;
		int fd = conf_socket(late ? 0 : (nonblock ? SOCK_NONBLOCK : 0) | (cloexec ? SOCK_CLOEXEC : 0));

		if (late && nonblock)
			conf_nonblock(fd, true);
		if (late && cloexec)
			CHECK(fcntl(fd, F_SETFD, FD_CLOEXEC) == 0, "F_SETFD");
		int r = conf_connect(fd, CONF_ECHO);
		CHECK(r == 0 || (nonblock && errno == EINPROGRESS), "connect");
		CHECK(!!(fcntl(fd, F_GETFD) & FD_CLOEXEC) == !!cloexec, "FD_CLOEXEC right after connect, case %d", bits);
		CHECK(conf_wait(fd, POLLOUT, 8000) && conf_so_error(fd) == 0, "connect");
		conf_path(fd);
		CHECK(!!(fcntl(fd, F_GETFD) & FD_CLOEXEC) == !!cloexec, "FD_CLOEXEC, case %d", bits);
		CHECK(!!(fcntl(fd, F_GETFL) & O_NONBLOCK) == !!nonblock, "O_NONBLOCK, case %d", bits);
		CHECK((fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDWR, "access mode");
		conf_echo(fd, 3000);
		close(fd);
	}
	conf_ok("close-on-exec and non-blocking");

	int on = 1, off = 0, fd = conf_socket(0);
	char byte;
	CHECK(ioctl(fd, FIONBIO, &on) == 0, "FIONBIO");
	CHECK(fcntl(fd, F_GETFL) & O_NONBLOCK, "FIONBIO sets O_NONBLOCK");
	int r = conf_connect(fd, CONF_ECHO);
	CHECK(r == 0 || errno == EINPROGRESS, "connect");
	CHECK(conf_wait(fd, POLLOUT, 8000) && conf_so_error(fd) == 0, "connect");
	conf_path(fd);
	CHECK_ERRNO(recv(fd, &byte, 1, 0), EAGAIN);
	CHECK(ioctl(fd, FIONBIO, &off) == 0, "FIONBIO");
	CHECK(!(fcntl(fd, F_GETFL) & O_NONBLOCK), "FIONBIO clears O_NONBLOCK");
	conf_send_all(fd, "x", 1);
	CHECK(recv(fd, &byte, 1, 0) == 1, "blocking recv");
	close(fd);
	conf_ok("FIONBIO");

	/* Cleared while the connect is in progress: the outcome still counts. */
	fd = conf_dial_nonblock(CONF_ECHO);
	conf_nonblock(fd, false);
	CHECK(conf_wait(fd, POLLOUT, 8000) && conf_so_error(fd) == 0, "connect");
	conf_path(fd);
	CHECK(!(fcntl(fd, F_GETFL) & O_NONBLOCK), "O_NONBLOCK came back");
	conf_names(fd, CONF_ECHO);
	conf_echo(fd, 3000);
	int queued = -1;
	conf_send_all(fd, "12345", 5);
	CHECK(conf_wait(fd, POLLIN, 8000), "no data");
	conf_sleep(0.02);
	CHECK(ioctl(fd, FIONREAD, &queued) == 0 && queued >= 1 && queued <= 5, "FIONREAD says %d", queued);
	close(fd);
	conf_ok("made blocking while in progress");
	return conf_done();
}
