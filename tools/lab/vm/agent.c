/* SPDX-License-Identifier: Apache-2.0
 *
 * The inside end of `slimlab exec` in a virtual machine.
 *
 *   agent run ID DIRECTORY CMD...   run CMD; its parent until it ends
 *   agent kill ID NUMBER            signal what `run ID` runs
 *   agent status ID                 how it ended, where an exit status cannot say it
 *   agent reseed                    mix standard input into the kernel's random pool
 *
 * SSH carries standard input, output and statuses below 128. It carries no signal to
 * a command without a terminal, and does not end a command whose client is gone: so
 * `run` leaves its pid where `kill` finds it, and kills what it runs when nobody reads
 * its output any more. A node that comes out of a snapshot has the random numbers of
 * its sisters: hence `reseed`.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef STATE
#define STATE "/run/lab"
#endif
#define ID_MAX 32
/* How long `kill` waits for a command that is being started, in units of 10 ms. */
#define START_WAIT 500

static void fail(const char *format, ...)
{
    va_list words;

    fputs("agent: ", stderr);
    va_start(words, format);
    vfprintf(stderr, format, words);
    va_end(words);
    fputc('\n', stderr);
    exit(125);
}

/* STATE/ID.SUFFIX, after a look at the ID: it comes from another machine. */
static const char *path_of(const char *id, const char *suffix)
{
    static char path[sizeof(STATE) + ID_MAX + 16];

    if (!*id || strlen(id) > ID_MAX || strspn(id, "0123456789abcdef") != strlen(id))
        fail("'%s' is no identifier", id);
    snprintf(path, sizeof(path), "%s/%s.%s", STATE, id, suffix);
    return path;
}

/* Appears at once or not at all: `kill` may be reading. */
static void leave(const char *id, const char *suffix, const char *format, ...)
{
    char made[sizeof(STATE) + ID_MAX + 16];
    va_list words;
    FILE *file;

    mkdir(STATE, 0700);
    snprintf(made, sizeof(made), "%s", path_of(id, "new"));
    file = fopen(made, "we");
    if (!file)
        fail("%s cannot be written: %s", made, strerror(errno));
    va_start(words, format);
    vfprintf(file, format, words);
    va_end(words);
    if (fclose(file) || rename(made, path_of(id, suffix)))
        fail("%s cannot be written: %s", path_of(id, suffix), strerror(errno));
}

static int run(const char *id, const char *directory, char **command)
{
    struct pollfd waits[2] = {{.fd = STDOUT_FILENO}, {.events = POLLIN}};
    siginfo_t ended = {0};
    sigset_t watched, before;
    pid_t child;
    int status, gone = 0;

    sigemptyset(&watched);
    sigaddset(&watched, SIGCHLD);
    sigprocmask(SIG_BLOCK, &watched, &before);
    waits[1].fd = signalfd(-1, &watched, SFD_CLOEXEC | SFD_NONBLOCK);
    setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", 1);
    /* A node need not have the caller's directory. */
    if (chdir(directory) && chdir("/"))
        fail("cannot change to /: %s", strerror(errno));
    unsetenv("PWD"); /* that of the login */
    child = fork();
    if (child < 0)
        fail("cannot fork: %s", strerror(errno));
    if (!child) {
        setsid();
        sigprocmask(SIG_SETMASK, &before, NULL);
        execvp(command[0], command);
        fprintf(stderr, "agent: %s: %s\n", command[0], strerror(errno));
        _exit(errno == ENOENT ? 127 : 126);
    }
    leave(id, "pid", "%d\n", (int)child);
    for (;;) {
        struct signalfd_siginfo news;

        /* Not reaped yet: until the file is gone the number is the child's own. */
        if (!waitid(P_PID, child, &ended, WEXITED | WNOHANG | WNOWAIT) && ended.si_pid == child)
            break;
        if (poll(waits, 2, -1) < 0 && errno != EINTR)
            fail("cannot wait: %s", strerror(errno));
        if (waits[1].revents && read(waits[1].fd, &news, sizeof(news)) < 0 && errno != EAGAIN)
            fail("cannot read signals: %s", strerror(errno));
        if (waits[0].revents & (POLLHUP | POLLERR | POLLNVAL)) {
            waits[0].fd = -1;
            gone = 1;
            kill(-child, SIGKILL);
        }
    }
    unlink(path_of(id, "pid"));
    if (waitpid(child, &status, 0) < 0)
        fail("cannot learn how %s ended: %s", command[0], strerror(errno));
    if (gone)
        return 129;
    if (WIFSIGNALED(status)) {
        leave(id, "status", "signal %d\n", WTERMSIG(status));
        return 128;
    }
    if (WEXITSTATUS(status) >= 128)
        leave(id, "status", "exit %d\n", WEXITSTATUS(status));
    return WEXITSTATUS(status);
}

static int number_in(const char *path)
{
    FILE *file = fopen(path, "re");
    int number = 0;

    if (file) {
        if (fscanf(file, "%d", &number) != 1)
            number = 0;
        fclose(file);
    }
    return number;
}

static int pass_signal(const char *id, int number)
{
    const struct timespec pause = {.tv_nsec = 10 * 1000 * 1000};
    const char *path = path_of(id, "pid");
    int tries, pid, handle;

    for (tries = 0; !(pid = number_in(path)); tries++) {
        if (tries > START_WAIT)
            return 1;
        nanosleep(&pause, NULL);
    }
    handle = (int)syscall(SYS_pidfd_open, pid, 0);
    /* Still the same: the handle was opened before the number could be anybody else's. */
    if (handle < 0 || number_in(path) != pid)
        return 1;
    return syscall(SYS_pidfd_send_signal, handle, number, NULL, 0) ? 1 : 0;
}

static int tell_status(const char *id)
{
    const char *path = path_of(id, "status");
    char line[64];
    FILE *file = fopen(path, "re");

    if (!file || !fgets(line, sizeof(line), file))
        return 1;
    fclose(file);
    unlink(path);
    fputs(line, stdout);
    return 0;
}

static int reseed(void)
{
    struct {
        struct rand_pool_info info;
        char bytes[512];
    } pool = {{0}, {0}};
    ssize_t got = read(STDIN_FILENO, pool.bytes, sizeof(pool.bytes));
    int random = open("/dev/urandom", O_RDWR | O_CLOEXEC);

    if (got < 32 || random < 0)
        fail("no random bytes came, or there is no /dev/urandom");
    pool.info.entropy_count = (int)got * 8;
    pool.info.buf_size = (int)got;
    if (ioctl(random, RNDADDENTROPY, &pool) || ioctl(random, RNDRESEEDCRNG))
        fail("the kernel does not take random bytes: %s", strerror(errno));
    return 0;
}

int main(int count, char **words)
{
    const char *verb = count > 1 ? words[1] : "";

    if (!strcmp(verb, "run") && count > 4)
        return run(words[2], words[3], words + 4);
    if (!strcmp(verb, "kill") && count == 4)
        return pass_signal(words[2], atoi(words[3]));
    if (!strcmp(verb, "status") && count == 3)
        return tell_status(words[2]);
    if (!strcmp(verb, "reseed") && count == 2)
        return reseed();
    fail("usage: agent run ID DIRECTORY CMD... | kill ID NUMBER | status ID | reseed");
    return 125;
}
