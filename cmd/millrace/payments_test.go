package main

import (
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/test/pgtest"
)

func TestPaymentsAreShownBesideTheGatewaysRecord(t *testing.T) {
	t.Parallel()

	url := pgtest.URL(t)

	pool, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()

	if _, err := pool.Exec(t.Context(), `
		INSERT INTO gateway_ledger (idempotency_key, order_id, attempt, amount, currency, transaction_id, settled_at)
		VALUES ('k1', 'paid', 1, 10, 'USD', 'txn_1', now()), ('k2', 'lost', 1, 20, 'EUR', 'txn_2', now() - interval '2 days')`); err != nil {
		t.Fatal(err)
	}

	if _, err := pool.Exec(t.Context(), `INSERT INTO payments (order_id, status, amount, currency, transaction_id) VALUES ('paid', 'captured', 10, 'USD', 'txn_1')`); err != nil {
		t.Fatal(err)
	}

	for _, c := range []struct {
		args  string
		code  int
		says  []string
		lacks string
	}{
		{"payments show paid", 0, []string{"here     captured  10 USD", "gateway  captured  10 USD", "both agree"}, "mismatch"},
		{"payments show lost", 0, []string{"mismatch: the gateway has captured txn_2, which is not recorded: 20 EUR"}, "here"},
		{"payments show lost --json", 0, []string{`"recorded": []`, `"transaction_id": "txn_2"`}, ""},
		{"payments show nope", exitNotFound, []string{"there is no payment of order nope"}, ""},
		{"payments ledger", 0, []string{"ORDER", "paid   txn_1"}, "lost"},
		{"payments ledger --since 0", 0, []string{"paid", "lost"}, ""},
		{"payments ledger --since 0 --json", 0, []string{`{"order_id":"lost","transaction_id":"txn_2","amount":20,"currency":"EUR","refunded":0,`}, "ORDER"},
	} {
		out, code := run(t, url, strings.Split(c.args, " ")...)

		for _, says := range c.says {
			if code != c.code || !strings.Contains(out, says) || (c.lacks != "" && strings.Contains(out, c.lacks)) {
				t.Errorf("millrace %s: exit code %d, expected %d with %q and without %q; output:\n%s", c.args, code, c.code, says, c.lacks, out)
			}
		}
	}
}
