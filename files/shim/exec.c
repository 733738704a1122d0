/* SPDX-License-Identifier: Apache-2.0 */
/*
 * exec and posix_spawn: a program that is given a clean environment would start
 * without us, with host addresses and an accept channel that it cannot read.
 * Where LD_PRELOAD brought us here, it goes on to bring us there. Through
 * ld.so.preload, which needs no environment, nothing is touched. A setuid target
 * ignores LD_PRELOAD for a path like ours, as it should.
 */
#include "slim.h"

#include <dlfcn.h>
#include <limits.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdlib.h>
#include <alloca.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifdef __GLIBC__
#if defined(__x86_64__)
__asm__(".symver dladdr, dladdr@GLIBC_2.2.5");
#elif defined(__aarch64__)
__asm__(".symver dladdr, dladdr@GLIBC_2.17");
#endif
#endif

SLIM_DECLARE_REAL(int, execve, const char *, char *const[], char *const[]);
SLIM_DECLARE_REAL(int, execvpe, const char *, char *const[], char *const[]);
SLIM_DECLARE_REAL(int, fexecve, int, char *const[], char *const[]);
SLIM_DECLARE_REAL(int, posix_spawn, pid_t *, const char *, const posix_spawn_file_actions_t *,
		  const posix_spawnattr_t *, char *const[], char *const[]);
SLIM_DECLARE_REAL(int, posix_spawnp, pid_t *, const char *, const posix_spawn_file_actions_t *,
		  const posix_spawnattr_t *, char *const[], char *const[]);

extern char **environ;

#define PRELOAD "LD_PRELOAD="
#define VARIABLE_MAX (2 * PATH_MAX)

static char own_path[PATH_MAX];
static size_t own_len; /* 0: we came through ld.so.preload */

void slim_exec_init(void)
{
	const char *preload = secure_getenv("LD_PRELOAD");
	Dl_info info;

	if (!preload || !dladdr((void *)slim_exec_init, &info) || !info.dli_fname)
		return;
	/* LD_PRELOAD's own spelling (a `current` link, say) is the one to hand on. */
	for (const char *at = preload; *at;) {
		size_t len = strcspn(at, ": ");
		const char *name = memrchr(at, '/', len);

		name = name ? name + 1 : at;
		if (len < sizeof(own_path) && (size_t)(at + len - name) >= 7 && memcmp(name, "libslim", 7) == 0) {
			memcpy(own_path, at, len);
			own_len = len;
			return;
		}
		at += len + (at[len] != '\0');
	}
}

static const char *preload_of(char *const envp[], size_t *count)
{
	const char *found = NULL;

	for (*count = 0; envp && envp[*count]; ++*count)
		if (strncmp(envp[*count], PRELOAD, sizeof(PRELOAD) - 1) == 0)
			found = envp[*count];
	return found;
}

static bool must_add(const char *preload)
{
	return own_len && !(preload && strstr(preload, own_path));
}

/* Fill `out` (count + 2 entries) and `text` with an environment that has us in it. */
static char *const *with_us(char *const envp[], size_t count, const char *preload, char **out, char *text)
{
	size_t used = sizeof(PRELOAD) - 1, to = 0;

	memcpy(text, PRELOAD, used);
	memcpy(text + used, own_path, own_len);
	used += own_len;
	if (preload && preload[sizeof(PRELOAD) - 1]) {
		size_t len = strlen(preload + sizeof(PRELOAD) - 1);

		if (used + 1 + len < VARIABLE_MAX) {
			text[used++] = ':';
			memcpy(text + used, preload + sizeof(PRELOAD) - 1, len);
			used += len;
		}
	}
	text[used] = '\0';
	for (size_t i = 0; i < count; i++)
		if (envp[i] != preload)
			out[to++] = envp[i];
	out[to++] = text;
	out[to] = NULL;
	return out;
}

/* On the caller's stack: between vfork and exec nothing else may be used. */
#define ENVIRONMENT(envp)                                                                          \
	size_t env_count;                                                                          \
	const char *env_preload = preload_of(envp, &env_count);                                    \
	bool env_add = must_add(env_preload);                                                      \
	char **env_room = env_add ? alloca((env_count + 2) * sizeof(char *)) : NULL;               \
	char *env_text = env_add ? alloca(VARIABLE_MAX) : NULL;                                    \
	char *const *env = env_add ? with_us(envp, env_count, env_preload, env_room, env_text) : (envp)

SLIM_EXPORT int execve(const char *path, char *const argv[], char *const envp[])
{
	ENVIRONMENT(envp);
	return REAL(execve)(path, argv, env);
}

SLIM_EXPORT int execv(const char *path, char *const argv[])
{
	return execve(path, argv, environ);
}

SLIM_EXPORT int execvpe(const char *file, char *const argv[], char *const envp[])
{
	ENVIRONMENT(envp);
	return REAL(execvpe)(file, argv, env);
}

SLIM_EXPORT int execvp(const char *file, char *const argv[])
{
	return execvpe(file, argv, environ);
}

SLIM_EXPORT int fexecve(int fd, char *const argv[], char *const envp[])
{
	ENVIRONMENT(envp);
	return REAL(fexecve)(fd, argv, env);
}

/* Collect a variable argument list that ends with NULL into argv[]. */
#define COLLECT(first)                                                                             \
	va_list args, counted;                                                                     \
	size_t argc = 1;                                                                           \
	va_start(args, first);                                                                     \
	va_copy(counted, args);                                                                    \
	while (va_arg(counted, char *))                                                            \
		argc++;                                                                            \
	va_end(counted);                                                                           \
	char **argv = alloca((argc + 1) * sizeof(char *));                                         \
	argv[0] = (char *)(first);                                                                 \
	for (size_t i = 1; i <= argc; i++)                                                         \
		argv[i] = va_arg(args, char *)

SLIM_EXPORT int execl(const char *path, const char *arg, ...)
{
	COLLECT(arg);
	va_end(args);
	return execve(path, argv, environ);
}

SLIM_EXPORT int execlp(const char *file, const char *arg, ...)
{
	COLLECT(arg);
	va_end(args);
	return execvpe(file, argv, environ);
}

SLIM_EXPORT int execle(const char *path, const char *arg, ...)
{
	COLLECT(arg);
	char *const *envp = va_arg(args, char *const *);

	va_end(args);
	return execve(path, argv, envp);
}

SLIM_EXPORT int posix_spawn(pid_t *restrict pid, const char *restrict path,
			    const posix_spawn_file_actions_t *actions, const posix_spawnattr_t *restrict attr,
			    char *const argv[restrict], char *const envp[restrict])
{
	ENVIRONMENT(envp);
	return REAL(posix_spawn)(pid, path, actions, attr, argv, env);
}

SLIM_EXPORT int posix_spawnp(pid_t *restrict pid, const char *restrict file,
			     const posix_spawn_file_actions_t *actions, const posix_spawnattr_t *restrict attr,
			     char *const argv[restrict], char *const envp[restrict])
{
	ENVIRONMENT(envp);
	return REAL(posix_spawnp)(pid, file, actions, attr, argv, env);
}
