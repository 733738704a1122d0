/* SPDX-License-Identifier: Apache-2.0 */
/* Outcomes, the search for facts, and questions to whoever started us. */
#include "escape.h"

#include <poll.h>

const char *const outcome_names[] = { "denied", "succeeded", "leaked", "not-applicable", "broken" };

static void append(struct ctx *c, const char *format, va_list arguments)
{
	size_t used = strlen(c->detail);

	if (used && used + 2 < sizeof(c->detail)) {
		strcpy(c->detail + used, "; ");
		used += 2;
	}
	vsnprintf(c->detail + used, sizeof(c->detail) - used, format, arguments);
}

void say(struct ctx *c, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	append(c, format, arguments);
	va_end(arguments);
}

/* Remember how a call went; the first refusal is the errno of the result line. */
long noted(struct ctx *c, const char *what, long result)
{
	if (result < 0) {
		if (!c->error)
			c->error = (int)-result;
		say(c, "%s: %s", what, strerror((int)-result));
	}
	return result;
}

enum outcome denied(struct ctx *c)
{
	/* What could not even be tried on this kernel proves nothing. */
	return c->unavailable ? NOT_APPLICABLE : DENIED;
}

enum outcome denied_by(struct ctx *c, const char *what, long result)
{
	noted(c, what, result);
	return denied(c);
}

#define VERDICT(name, value)                                         \
	enum outcome name(struct ctx *c, const char *format, ...)    \
	{                                                            \
		va_list arguments;                                   \
		va_start(arguments, format);                         \
		append(c, format, arguments);                        \
		va_end(arguments);                                   \
		return value;                                        \
	}
VERDICT(succeeded, SUCCEEDED)
VERDICT(leaked, LEAKED)
VERDICT(not_applicable, NOT_APPLICABLE)
VERDICT(broken, BROKEN)

const struct fact *scan(const void *data, size_t size)
{
	for (int i = 0; i < settings.n_facts; i++) {
		const struct fact *f = &settings.facts[i];

		/* Names to ask about, which containers may have as well. */
		if (strcmp(f->kind, "device") == 0)
			continue;
		if (f->size && memmem(data, size, f->bytes, f->size))
			return f;
		/* An interface's name is looked for as a whole word's beginning. */
		if (f->text[0] && memmem(data, size, f->text, strlen(f->text)))
			return f;
	}
	return NULL;
}

enum outcome scanned(struct ctx *c, const char *what, const void *data, size_t size)
{
	const struct fact *f = scan(data, size);

	if (f)
		return leaked(c, "%s: %zu bytes with the %s %s", what, size, f->kind,
			      strcmp(f->kind, "secret") == 0 ? "(kept back)" : f->text);
	say(c, "%s: %zu bytes without a fact", what, size);
	return denied(c);
}

enum outcome talk(struct ctx *c)
{
	char answer[256];
	size_t got = 0;
	char line[sizeof(c->token) + 1];
	int size = snprintf(line, sizeof(line), "%s\n", c->token);
	long result = c_write(c, line, (size_t)size);

	if (noted(c, "write", result) < 0)
		return denied(c);
	for (int turn = 0; turn < 8 && got < sizeof(answer) - 1; turn++) {
		result = c_read(c, answer + got, sizeof(answer) - 1 - got);
		if (result <= 0)
			break;
		got += (size_t)result;
		answer[got] = 0;
		if (settings.secret[0] && strstr(answer, settings.secret))
			return succeeded(c, "the canary answered");
		if (strchr(answer, '\n'))
			break; /* our own peer's echo */
	}
	noted(c, "read", result);
	say(c, "no canary at the other end");
	return denied(c);
}

bool ping(struct ctx *c, int ms)
{
	char sent[48], back[256];
	static unsigned number;
	size_t got = 0, size = (size_t)snprintf(sent, sizeof(sent), "ping %u %d\n", ++number, getpid());

	if (noted(c, "write", c_write(c, sent, size)) != (long)size)
		return false;
	while (got < sizeof(back)) {
		if (c->fd >= 0 && !(wait_for(c->fd, POLLIN, ms) & POLLIN))
			return false;
		long n = c_read(c, back + got, sizeof(back) - got);

		if (n <= 0)
			return noted(c, "read", n), false;
		got += (size_t)n;
		if (memmem(back, got, sent, size))
			return true;
	}
	return false;
}

/* A question to the runner, by way of whoever started us: was it done? */
bool ask(struct ctx *c, const char *format, ...)
{
	char text[256] = "Q ";
	va_list arguments;
	long got;

	va_start(arguments, format);
	vsnprintf(text + 2, sizeof(text) - 2, format, arguments);
	va_end(arguments);
	if (raw(SYS_sendto, c->report, text, strlen(text), MSG_NOSIGNAL, 0, 0) < 0)
		return false;
	got = raw(SYS_recvfrom, c->report, text, sizeof(text) - 1, 0, 0, 0);
	if (got <= 0)
		return false;
	text[got] = 0;
	return strncmp(text, "A ok", 4) == 0;
}

void report(struct ctx *c, enum outcome outcome)
{
	char text[600];

	snprintf(text, sizeof(text), "R %d %d %s", outcome, c->error, c->detail);
	if (raw(SYS_sendto, c->report, text, strlen(text), MSG_NOSIGNAL, 0, 0) == -ENOTSOCK)
		/* By hand: a terminal or a file. */
		printf("%s: %s %s\n", c->attempt->name, outcome_names[outcome], c->detail);
}
