package main

import (
	"strings"
	"testing"
	"time"

	"github.com/millracehq/millrace/internal/test/pgtest"
)

func TestNamesThatDoNotExistAreRefusedWithTheNearest(t *testing.T) {
	t.Parallel()

	url, pool := stopped(t, oneOrder)

	group := pgtest.Value[string](t, pool, `SELECT group_id FROM failed_messages`)
	typo := "x" + group[1:]

	for args, says := range map[string]string{
		"failed lsit":                                `unknown command "lsit" for "millrace failed"; did you mean list?`,
		"help orders shwo":                           `unknown command "shwo" for "millrace orders"; did you mean show?`,
		"help ordres":                                `unknown command "ordres" for "millrace"; did you mean orders?`,
		"completion zhs":                             "there is no shell zhs; did you mean zsh?",
		"failed list --reason pannic":                "there is no reason pannic; did you mean panic?",
		"failed groups --reason Handler_Error":       "there is no reason Handler_Error; did you mean handler_error?",
		"failed export --reason x":                   "there is no reason x, expected one of too_large, malformed",
		"failed list --state stoped":                 "there is no state stoped; did you mean stopped?",
		"failed count --by toppic":                   "there is no property to count by toppic; did you mean topic?",
		"failed list --group " + typo:                "there is no group " + typo + "; did you mean " + group + "?",
		"failed groups --topic order.created":        "there is no topic order.created; did you mean orders.created?",
		"failed requeue --reason panik":              "did you mean panic?",
		"failed discard --why x --group " + typo:     "did you mean " + group + "?",
		"failed waiting --consumer fulfilment.chrge": "there is no consumer fulfilment.chrge; did you mean fulfilment.charge?",
		"failed retry --consumer fulfilment.chrge":   "there is no consumer fulfilment.chrge; did you mean fulfilment.charge?",
		"consumers pause fulfilment.chrge":           "there is no consumer fulfilment.chrge; did you mean fulfilment.charge?",
		"orders list --status complete":              "there is no status complete; did you mean completed?",
		"activity --action requeue":                  "there is no action requeue; did you mean requeued?",
		"projections rebuild user":                   "there is no projection user; did you mean users?",
		"audit --only stok":                          "there is no check stok; did you mean stock?",
		"tail orders.creatd":                         "did you mean orders.created?",
		"status --broker kafak":                      `broker.kind: is "kafak", expected embedded, kafka or rabbitmq`,
		"status --log-level wrn":                     `log.level: is "wrn"`,
	} {
		expect(t, url, args, exitUsage, says)
	}

	// Ids are not names: an id that is unknown now may exist tomorrow.
	for args, says := range map[string]string{
		"stock product_9":          "there is no product product_9",
		"events show order-nobody": "there is no stream order-nobody",
		"payments show nobody":     "there is no",
	} {
		expect(t, url, args, exitNotFound, says)
	}
}

func TestAListThatIsCutSaysSo(t *testing.T) {
	t.Parallel()

	url, pool := stopped(t)

	for _, sql := range []string{
		`INSERT INTO orders (id, status, version, total_amount, currency, lines) SELECT 'o' || n, 'completed', 4, 1, 'USD', '[{}]' FROM generate_series(1, 1234) n`,
		`INSERT INTO users (id, version, erased, created_at, updated_at) SELECT 'u' || n, 1, true, now(), now() FROM generate_series(1, 10100) n`,
		`INSERT INTO user_misses (message_id, user_id, missed_at) SELECT gen_random_uuid(), 'u' || n, now() FROM generate_series(1, 21) n`,
		`INSERT INTO notifications (message_id, user_id, channel, status, answer, sent_at) SELECT gen_random_uuid(), 'u' || n % 2, 'log', 'sent', '', now() FROM generate_series(1, 42) n`,
		`INSERT INTO operator_actions (action, subject, who, why) SELECT 'paused', 'c', 'bob', '' FROM generate_series(1, 30) n`,
		`INSERT INTO analytics_daily (day, event, count) SELECT (now() AT TIME ZONE 'UTC')::date, 'e' || n, n FROM generate_series(1, 25) n`,
		`INSERT INTO failed_keys (consumer, key, due_at) SELECT 'fulfilment.place', 'k' || n, now() + interval '1h' FROM generate_series(1, 23) n`,
		`INSERT INTO failed_messages (consumer, topic, key, message_id, fingerprint, origin, headers, payload, reason, error, cause, group_id, attempts,
			first_release, last_release, state, failed_key, deliveries)
			SELECT 'fulfilment.place', 'orders.created', 'k' || n, gen_random_uuid(), n, '', '{}', '{}', 'panic', 'e', 'c', 'g' || n, 1, '1', '1',
				CASE WHEN n < 24 THEN 'waiting' ELSE 'stopped' END, CASE WHEN n < 24 THEN 'k' || n END, 1 FROM generate_series(1, 50) n`,
	} {
		if _, err := pool.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}

	for args, says := range map[string]string{
		"orders list":                         "20 of 1,234; --limit lists more\n",
		"orders list --limit 1000":            "1,000 of 1,234; --limit lists more\n",
		"orders list --json":                  "20 of 1,234; --limit lists more\n",
		"orders list --limit 1234":            "",
		"orders list --status paid":           "",
		"users list":                          "20 of more than 10,000; --limit lists more\n",
		"users misses":                        "20 of 21; --limit lists more\n",
		"notifications list":                  "20 of 42; --limit lists more\n",
		"notifications list --user u1":        "20 of 21; --limit lists more\n",
		"activity":                            "20 of 30; --limit lists more\n",
		"activity --who ann":                  "",
		"analytics top":                       "20 of 25; --limit lists more\n",
		"failed waiting":                      "20 of 23; --limit lists more\n",
		"failed list":                         "20 of 27; --limit lists more\n",
		"failed list --state all --limit 3":   "3 of 50; --limit lists more\n",
		"failed groups":                       "20 of 27; --limit lists more\n",
		"failed count --by key":               "20 of 27; --limit lists more\n",
		"failed count --by reason --limit 20": "",
	} {
		out, code := run(t, url, strings.Split(args, " ")...)
		if code != 0 || !strings.HasSuffix(out, says) || says == "" && strings.Contains(out, "--limit") {
			t.Errorf("millrace %s: exit code %d, expected %q at the end; output:\n%s", args, code, says, out)
		}
	}
}

func TestPrintedTimesHaveAZone(t *testing.T) {
	t.Parallel()

	url, pool := stopped(t, oneOrder, "\xff")
	if _, err := pool.Exec(t.Context(), `UPDATE failed_messages SET last_at = '2026-07-01T12:00:00.5Z', first_at = '2026-01-01T12:00:00Z'`); err != nil {
		t.Fatal(err)
	}

	here := pgtest.Value[time.Time](t, pool, `SELECT min(last_at) FROM failed_messages`).Local().Format("2006-01-02 15:04:05.000Z07:00")

	for args, says := range map[string]string{
		"failed list":        here,
		"failed show 1":      here,
		"failed list --json": `"last_at": "2026-07-01T12:00:00.5Z"`,
		"failed show 1 --json": `"payload": {
    "text": "{\"order\":`,
		"failed show 2 --json": `"payload": {
    "base64": "/w=="`,
		"failed export 1": `"payload":{"text":"{\"order\":`,
	} {
		expect(t, url, args, 0, says)
	}
}
