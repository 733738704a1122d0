/* SPDX-License-Identifier: Apache-2.0 */
/*
 *   escape list                    the rows, as JSON lines
 *   escape serve    --peer A:P     the peer (with the shim)
 *   escape receive  --meet PATH    the other container's end
 *   escape run      ...            the attempts of one identity (with the shim)
 *   escape guest    --secure 0|1   all of it on one machine, see guest.c
 *   escape-static one ... --fd N   one attempt on an inherited socket
 * Options of run: --identity I, --attempts A,B (all), --variants V,W (all), --peer A:P,
 *   --canary A:P, --peer-host A, --secret TEXT, --fact KIND=TEXT[=HEX], --meet PATH,
 *   --listen-port N, --accept-port N, --static PATH
 * one takes --attempts A, --variants V (its name only) and the socket that it inherited.
 * Questions for the runner ({"ask": ...}) are answered on stdin: "A ok" or "A no".
 */
#include "escape.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>

#define BOUND_MS 8000

struct settings settings;

static const struct attempt *const tables[] = { reach_attempts, learn_attempts, treat_attempts,
						keep_attempts, sweep_attempts };

const struct attempt *find_attempt(const char *name)
{
	for (size_t t = 0; t < sizeof(tables) / sizeof(tables[0]); t++)
		for (const struct attempt *a = tables[t]; a->name; a++)
			if (strcmp(a->name, name) == 0)
				return a;
	return NULL;
}

static void die(const char *format, const char *what)
{
	fprintf(stderr, "escape: ");
	fprintf(stderr, format, what);
	fprintf(stderr, "; see the head of tests/escape/main.c\n");
	exit(2);
}

/* A.B.C.D:PORT, or A.B.C.D where port is NULL */
static void address(const char *text, struct in_addr *ip, uint16_t *port)
{
	char host[64];
	const char *colon = strrchr(text, ':');
	size_t size = colon ? (size_t)(colon - text) : strlen(text);

	if (size >= sizeof(host) || (port && !colon))
		die("%s is no address", text);
	memcpy(host, text, size);
	host[size] = 0;
	if (inet_pton(AF_INET, host, ip) != 1)
		die("%s is no address", text);
	if (port)
		*port = (uint16_t)atoi(colon + 1);
}

/* KIND=TEXT, or KIND=TEXT=HEX for bytes that look otherwise than their text */
static void add_fact(const char *text)
{
	struct fact *f = &settings.facts[settings.n_facts];
	const char *first = strchr(text, '='), *hex;

	if (!first || settings.n_facts == MAX_FACTS || (size_t)(first - text) >= sizeof(f->kind))
		die("fact %s", text);
	memcpy(f->kind, text, (size_t)(first - text));
	hex = strchr(first + 1, '=');
	snprintf(f->text, sizeof(f->text), "%.*s", hex ? (int)(hex - first - 1) : 127, first + 1);
	for (const char *p = hex ? hex + 1 : ""; p[0] && p[1] && f->size < sizeof(f->bytes); p += 2) {
		char two[3] = { p[0], p[1], 0 };

		f->bytes[f->size++] = (unsigned char)strtoul(two, NULL, 16);
	}
	settings.n_facts++;
}

static bool listed(const char *list, const char *name)
{
	size_t size = strlen(name);

	for (const char *p = list; p; p = strchr(p, ',') ? strchr(p, ',') + 1 : NULL)
		if (strncmp(p, name, size) == 0 && (p[size] == ',' || p[size] == 0))
			return true;
	return strcmp(list, "all") == 0;
}

static void json(const char *text)
{
	putchar('"');
	for (const unsigned char *p = (const unsigned char *)text; *p; p++) {
		if (*p == '"' || *p == '\\')
			printf("\\%c", *p);
		else if (*p < 32 || *p > 126)
			printf("\\u%04x", *p);
		else
			putchar(*p);
	}
	putchar('"');
}

static void list(void)
{
	for (size_t t = 0; t < sizeof(tables) / sizeof(tables[0]); t++)
		for (const struct attempt *a = tables[t]; a->name; a++)
			if (find_attempt(a->name) != a)
				die("two attempts are called %s", a->name);
	for (size_t t = 0; t < sizeof(tables) / sizeof(tables[0]); t++)
		for (const struct attempt *a = tables[t]; a->name; a++) {
			printf("{\"attempt\": \"%s\", \"group\": \"%s\", \"gives\": ", a->name, a->group);
			json(a->gives);
			printf("}\n");
		}
	for (const struct variant *v = variants; v->name; v++) {
		printf("{\"variant\": \"%s\", \"what\": ", v->name);
		json(v->what);
		printf("}\n");
	}
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static double started; /* of the attempt at hand */

static void result(const struct ctx *c, int outcome, int error, const char *detail)
{
	const char *name = error ? strerrorname_np(error) : "";

	printf("{\"attempt\": \"%s\", \"group\": \"%s\", \"variant\": \"%s\", \"identity\": \"%s\", "
	       "\"outcome\": \"%s\", \"errno\": \"%s\", \"token\": \"%s/%s/%s/%u\", \"ms\": %.1f, "
	       "\"detail\": ",
	       c->attempt->name, c->attempt->group, c->variant, c->identity, outcome_names[outcome],
	       name ? name : "", c->attempt->name, c->variant, c->identity, c->serial,
	       (now() - started) * 1e3);
	json(detail);
	printf("}\n");
	fflush(stdout);
}

/* One attempt in a process group of its own, watched. */
static void watched(struct ctx *c)
{
	int pair[2], status = 0;
	char text[700], answer[128];
	pid_t child;
	bool said = false;

	started = now();
	if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) < 0)
		die("socketpair: %s", strerror(errno));
	child = fork();
	if (child == 0) {
		setpgid(0, 0);
		close(pair[0]);
		c->report = pair[1];
		run_attempt(c);
		_exit(0);
	}
	setpgid(child, child);
	close(pair[1]);
	for (;;) {
		struct pollfd p = { .fd = pair[0], .events = POLLIN };
		ssize_t got;

		if (poll(&p, 1, BOUND_MS) <= 0) {
			result(c, BROKEN, 0, "hung: no result within 8 s");
			said = true;
			break;
		}
		got = recv(pair[0], text, sizeof(text) - 1, 0);
		if (got <= 0)
			break;
		text[got] = 0;
		if (text[0] == 'Q') {
			printf("{\"ask\": ");
			json(text + 2);
			printf("}\n");
			fflush(stdout);
			if (!fgets(answer, sizeof(answer), stdin))
				exit(1); /* the runner is gone */
			send(pair[0], answer, strlen(answer), MSG_NOSIGNAL);
			continue;
		}
		int outcome = BROKEN, error = 0, used = 0;

		if (sscanf(text, "R %d %d %n", &outcome, &error, &used) >= 2) {
			result(c, outcome, error, text + used);
			said = true;
		}
		break;
	}
	kill(-child, SIGKILL);
	close(pair[0]);
	while (waitpid(child, &status, 0) < 0 && errno == EINTR)
		;
	if (!said) {
		snprintf(text, sizeof(text), "ended without a result: %s %d",
			 WIFSIGNALED(status) ? "signal" : "status",
			 WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
		result(c, BROKEN, 0, text);
	}
}

static int run(const char *identity, const char *attempts, const char *chosen)
{
	char why[256] = "";
	unsigned serial = 0;

	if (!obtain_prepare(why, sizeof(why)))
		die("%s", why);
	if (!become(identity, why, sizeof(why))) {
		/* Say so for the whole identity: nothing of it was tried. */
		printf("{\"identity\": \"%s\", \"not-applicable\": ", identity);
		json(why);
		printf("}\n{\"done\": 0}\n");
		return 0;
	}
	for (size_t t = 0; t < sizeof(tables) / sizeof(tables[0]); t++)
		for (const struct attempt *a = tables[t]; a->name; a++) {
			if (!listed(attempts, a->name))
				continue;
			for (const struct variant *v = variants; v->name; v++) {
				struct ctx c = { .attempt = a,
						 .variant = v->name,
						 .identity = identity,
						 .index = -1,
						 .fd = -1,
						 .serial = serial + 1 };

				if (listed(chosen, v->name)) {
					serial++;
					watched(&c);
				}
			}
		}
	printf("{\"done\": %u}\n", serial);
	return 0;
}

int main(int argc, char **argv)
{
	const char *verb = argc > 1 ? argv[1] : "", *identity = "user", *attempts = "all",
		   *chosen = "all", *path = NULL;
	struct ctx one = { .index = -1, .fd = -1, .report = -1 };
	bool secure = false;

	settings.argc = argc;
	settings.argv = argv;
	settings.listen_port = 23000;
	settings.accept_port = 7100;
	settings.static_fd = -1;
	signal(SIGPIPE, SIG_IGN);
	for (int i = 2; i + 1 < argc; i += 2) {
		const char *name = argv[i], *value = argv[i + 1];

		if (strcmp(name, "--identity") == 0)
			identity = value;
		else if (strcmp(name, "--attempts") == 0)
			attempts = value;
		else if (strcmp(name, "--variants") == 0)
			chosen = value;
		else if (strcmp(name, "--peer") == 0)
			address(value, &settings.peer, &settings.peer_port);
		else if (strcmp(name, "--canary") == 0)
			address(value, &settings.canary, &settings.canary_port);
		else if (strcmp(name, "--peer-host") == 0)
			address(value, &settings.peer_host, NULL);
		else if (strcmp(name, "--secret") == 0)
			snprintf(settings.secret, sizeof(settings.secret), "%s", value);
		else if (strcmp(name, "--fact") == 0)
			add_fact(value);
		else if (strcmp(name, "--meet") == 0)
			snprintf(settings.meet, sizeof(settings.meet), "%s", value);
		else if (strcmp(name, "--listen-port") == 0)
			settings.listen_port = (uint16_t)atoi(value);
		else if (strcmp(name, "--accept-port") == 0)
			settings.accept_port = (uint16_t)atoi(value);
		else if (strcmp(name, "--static") == 0)
			path = value;
		else if (strcmp(name, "--fd") == 0)
			one.fd = atoi(value);
		else if (strcmp(name, "--report") == 0)
			one.report = atoi(value);
		else if (strcmp(name, "--serial") == 0)
			one.serial = (unsigned)atoi(value);
		else if (strcmp(name, "--dealer") == 0)
			snprintf(settings.dealer, sizeof(settings.dealer), "%s", value);
		else if (strcmp(name, "--secure") == 0)
			secure = atoi(value) != 0;
		else
			die("no option %s", name);
	}
	if (strcmp(verb, "list") == 0) {
		list();
		return 0;
	}
	if (strcmp(verb, "serve") == 0)
		serve();
	if (strcmp(verb, "receive") == 0)
		receive();
	if (strcmp(verb, "guest") == 0)
		return guest(identity, chosen, attempts, secure);
	if (strcmp(verb, "one") == 0) {
		one.attempt = find_attempt(attempts);
		one.variant = chosen;
		one.identity = identity;
		if (!one.attempt || one.fd < 0)
			die("%s: no such attempt, or no --fd", attempts);
		/* Without --report: by hand; the result goes to stdout as it is. */
		if (one.report < 0)
			one.report = 1;
		finish_inherited(&one);
		return 0;
	}
	if (strcmp(verb, "run") != 0)
		die("no verb '%s'", verb);
	if (path)
		settings.static_fd = open(path, O_RDONLY | O_CLOEXEC);
	return run(identity, attempts, chosen);
}
