package payment_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/shop/money"
	"github.com/millracehq/millrace/internal/shop/payment"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

func simulatedConfig(rules ...payment.Rule) payment.Config {
	cfg := payment.DefaultConfig()
	cfg.Simulated.Timeout = time.Millisecond
	cfg.Simulated.Rules = rules

	return cfg
}

// ledger returns the captures of an order.
func ledger(tb testing.TB, gateway payment.Gateway, orderID string) (entries []payment.Entry) {
	tb.Helper()

	err := gateway.Ledger(tb.Context(), time.Time{}, func(e payment.Entry) error {
		if e.OrderID == orderID {
			entries = append(entries, e)
		}

		return nil
	})
	if err != nil {
		tb.Fatal(err)
	}

	return entries
}

func TestTheSimulatedGatewayFollowsRules(t *testing.T) {
	t.Parallel()

	pool := pgtest.New(t)
	cfg := simulatedConfig(
		payment.Rule{Order: "declined-*", Action: "decline"}, payment.Rule{Order: "exactly", Action: "decline"},
		payment.Rule{Order: "lost-*", Action: "timeout"}, payment.Rule{Order: "broken-*", Action: "error", Times: 3},
		payment.Rule{Order: "slow-*", Action: "charge_then_timeout", Times: 2}, payment.Rule{Order: "bad-*", Action: "charge_then_error"},
		payment.Rule{Order: "*", Action: "capture"})

	for _, c := range []struct {
		order    string
		failures int
		declined string
		charged  bool // charged by the first request, although it fails
	}{
		{"fine", 0, "", false},
		{"declined-1", 0, "the card was declined", false},
		{"exactly", 0, "the card was declined", false},
		{"exactly-not", 0, "", false},
		{"lost-1", 1, "", false},
		{"broken-1", 3, "", false},
		{"slow-1", 2, "", true},
		{"bad-1", 1, "", true},
	} {
		open := func() payment.Gateway { return newGateway(t, cfg, pool) }

		if found, err := open().Find(t.Context(), chargeFor(c.order)); found != (payment.Outcome{}) || err != nil {
			t.Errorf("%s: found %+v before it was charged, %v", c.order, found, err)
		}

		if c.failures > 0 {
			_, err := open().Charge(t.Context(), chargeFor(c.order))
			if !errors.Is(err, payment.ErrUnknown) {
				t.Errorf("%s: got %v, expected an unknown outcome", c.order, err)
			}

			c.failures--

			if found, err := open().Find(t.Context(), chargeFor(c.order)); found.Captured() != c.charged || err != nil {
				t.Errorf("%s: found %+v after the failure, %v", c.order, found, err)
			}
		}

		outcome, errs := settle(t, open, chargeFor(c.order))
		if len(errs) != c.failures || outcome.Declined != c.declined || outcome.Captured() == (c.declined != "") {
			t.Errorf("%s: %+v after %v", c.order, outcome, errs)
		}

		found, err := open().Find(t.Context(), chargeFor(c.order))
		if err != nil || found != outcome {
			t.Errorf("%s: found %+v, %v, expected %+v", c.order, found, err, outcome)
		}

		if entries := ledger(t, open(), c.order); len(entries) != map[bool]int{true: 1}[outcome.Captured()] {
			t.Errorf("%s: the ledger has %+v", c.order, entries)
		}
	}
}

func TestTheSimulatedGatewayFailsAtRandomAndChargesOnce(t *testing.T) {
	t.Parallel()

	const orders = 100

	pool := pgtest.New(t)
	cfg := simulatedConfig()
	cfg.Simulated.DeclineRate, cfg.Simulated.TimeoutRate, cfg.Simulated.ErrorRate = 0.2, 0.1, 0.1
	cfg.Simulated.ChargeThenTimeoutRate, cfg.Simulated.ChargeThenErrorRate = 0.1, 0.1
	cfg.Simulated.Latency = time.Microsecond
	gateway := newGateway(t, cfg, pool)

	var (
		wait     sync.WaitGroup
		mu       sync.Mutex
		outcomes = map[string]payment.Outcome{}
		failures int
	)

	for i := range orders * 2 { // each order twice, concurrently
		wait.Go(func() {
			order := fmt.Sprint(i / 2)
			outcome, errs := settle(t, func() payment.Gateway { return gateway }, chargeFor(order))

			mu.Lock()
			defer mu.Unlock()

			failures += len(errs)

			if before, known := outcomes[order]; known && before != outcome {
				t.Errorf("%s: got both %+v and %+v", order, before, outcome)
			}

			outcomes[order] = outcome
		})
	}

	wait.Wait()

	captured := 0

	for _, outcome := range outcomes {
		if outcome.Captured() {
			captured++
		}
	}

	if failures == 0 || captured == 0 || captured == orders {
		t.Errorf("%d failures, %d of %d captured: not random", failures, captured, orders)
	}

	if entries := pgtest.Value[int](t, pool, `SELECT count(*) FROM gateway_ledger WHERE transaction_id IS NOT NULL`); entries != captured {
		t.Errorf("the ledger has %d captures, %d were returned", entries, captured)
	}
}

func TestTheSimulatedLedgerSurvivesARollback(t *testing.T) {
	t.Parallel()

	pool := pgtest.New(t)
	gateway := newGateway(t, simulatedConfig(), pool)

	for range 2 {
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}

		if _, err := gateway.Charge(t.Context(), chargeFor("order")); err != nil {
			t.Fatal(err)
		}

		if err := tx.Rollback(context.WithoutCancel(t.Context())); err != nil {
			t.Fatal(err)
		}
	}

	entries := ledger(t, gateway, "order")
	if len(entries) != 1 || !entries[0].Amount.Equal(money.MustParse("99.99")) || entries[0].Currency != "USD" || time.Since(entries[0].At) > time.Hour {
		t.Errorf("got %+v", entries)
	}

	other := chargeFor("order")
	other.Amount = money.MustParse("1")

	_, err := gateway.Charge(t.Context(), other)
	if rejection, ok := errors.AsType[*event.RejectError](err); !ok || rejection.Reason != event.ReasonConflict {
		t.Errorf("the same attempt with another amount: %v", err)
	}
}

func TestTheSimulatedGatewayRefundsOnce(t *testing.T) {
	t.Parallel()

	gateway := newGateway(t, simulatedConfig(payment.Rule{Order: "slow-*", Action: "refund_then_timeout"}), pgtest.New(t))

	for _, order := range []string{"fine", "slow-1"} {
		outcome, err := gateway.Charge(t.Context(), chargeFor(order))
		if err != nil {
			t.Fatal(err)
		}

		refund := payment.Refund{OrderID: order, TransactionID: outcome.TransactionID, Amount: money.MustParse("99.99"), Currency: "USD"}

		if order == "slow-1" {
			_, err := gateway.Refund(t.Context(), refund)
			expectRetryable(t, err)
		}

		for range 2 {
			if id, err := gateway.Refund(t.Context(), refund); err != nil || id != "ref_"+outcome.TransactionID {
				t.Errorf("%s: got %q, %v", order, id, err)
			}
		}

		if entries := ledger(t, gateway, order); len(entries) != 1 || !entries[0].Refunded.Equal(money.MustParse("99.99")) {
			t.Errorf("%s: the ledger has %+v", order, entries)
		}

		refund.OrderID = "another"

		_, err = gateway.Refund(t.Context(), refund)
		if _, refused := errors.AsType[*payment.RefusedError](err); !refused {
			t.Errorf("a capture of another order: got %v", err)
		}
	}
}

func TestTheSimulatedLedgerIsReadInPages(t *testing.T) {
	t.Parallel()

	pool := pgtest.New(t)

	// Give all entries the same time, so that pages end between equal times.
	if _, err := pool.Exec(t.Context(), `
		INSERT INTO gateway_ledger (idempotency_key, order_id, attempt, amount, currency, transaction_id, settled_at)
		SELECT 'k' || i, 'o' || i, 1, i, 'USD', 't' || i, '2026-01-01' FROM generate_series(1, 2500) i`); err != nil {
		t.Fatal(err)
	}

	gateway := newGateway(t, simulatedConfig(), pool)
	seen := map[string]bool{}

	err := gateway.Ledger(t.Context(), time.Date(2025, 12, 31, 0, 0, 0, 0, time.UTC), func(e payment.Entry) error {
		if seen[e.TransactionID] {
			t.Errorf("%s is returned twice", e.TransactionID)
		}

		seen[e.TransactionID] = true

		return nil
	})
	if err != nil || len(seen) != 2500 {
		t.Errorf("%d entries, %v", len(seen), err)
	}
}

func TestWithoutALedgerPostgresIsNotUsed(t *testing.T) {
	t.Parallel()

	cfg := simulatedConfig()
	cfg.Simulated.Ledger = false
	gateway := newGateway(t, cfg, nil) // using the nil pool would panic

	outcome, err := gateway.Charge(t.Context(), chargeFor("order"))
	if with, _ := newGateway(t, simulatedConfig(), pgtest.New(t)).Charge(t.Context(), chargeFor("order")); err != nil || outcome != with {
		t.Errorf("got %+v, %v, with a ledger %+v", outcome, err, with)
	}

	if found, err := gateway.Find(t.Context(), chargeFor("order")); err != nil || found != outcome {
		t.Errorf("found %+v, %v", found, err)
	}

	if id, err := gateway.Refund(t.Context(), payment.Refund{TransactionID: "txn"}); err != nil || id != "ref_txn" {
		t.Errorf("got %q, %v", id, err)
	}

	nothing := chargeFor("nothing")
	nothing.Amount = money.MustParse("0")

	if outcome, err := gateway.Charge(t.Context(), nothing); err != nil || outcome.Declined != "amount must be above zero" {
		t.Errorf("nothing: %+v, %v", outcome, err)
	}
}

func TestAnUnreachableLedgerMeansPostgresIsUnavailable(t *testing.T) {
	t.Parallel()

	pool := pgtest.New(t)
	gateway := newGateway(t, simulatedConfig(), pool)
	pool.Close()

	_, err := gateway.Charge(t.Context(), chargeFor("order"))
	expectPostgresUnavailable(t, err)

	_, err = gateway.Find(t.Context(), chargeFor("order"))
	expectPostgresUnavailable(t, err)

	_, err = gateway.Refund(t.Context(), payment.Refund{})
	expectPostgresUnavailable(t, err)
}

func expectPostgresUnavailable(t *testing.T, err error) {
	t.Helper()

	if away, ok := errors.AsType[*event.UnavailableError](err); !ok || away.Dependency != postgres.Dependency {
		t.Errorf("got %v, expected Postgres to be unavailable", err)
	}
}

func TestConfigurationErrorsNameTheKey(t *testing.T) {
	t.Parallel()

	for want, change := range map[string]func(*payment.Config){
		`payment.gateway: is "cash"`:                                                 func(c *payment.Config) { c.Gateway = "cash" },
		"payment.simulated.latency: ":                                                func(c *payment.Config) { c.Simulated.Latency = -1 },
		"payment.simulated.timeout: ":                                                func(c *payment.Config) { c.Simulated.Timeout = -1 },
		"payment.simulated.decline_rate: is 2":                                       func(c *payment.Config) { c.Simulated.DeclineRate = 2 },
		"payment.simulated: the rates add up to 1.2":                                 func(c *payment.Config) { c.Simulated.TimeoutRate, c.Simulated.ErrorRate = 0.6, 0.6 },
		"payment.simulated.rules: order is missing":                                  func(c *payment.Config) { c.Simulated.Rules = []payment.Rule{{Action: "error"}} },
		`payment.simulated.rules: action is "burn" for x, expected one of capture, `: func(c *payment.Config) { c.Simulated.Rules = []payment.Rule{{Order: "x", Action: "burn"}} },
		"payment.simulated.rules: times is -1 for x":                                 func(c *payment.Config) { c.Simulated.Rules = []payment.Rule{{Order: "x", Action: "error", Times: -1}} },
		"payment.simulated.ledger: is false": func(c *payment.Config) {
			c.Simulated.Ledger, c.Simulated.Rules = false, []payment.Rule{{Order: "x", Action: "error"}}
		},
		"payment.stripe.secret_key: ":               func(c *payment.Config) { c.Gateway, c.Stripe.SecretKey = "stripe", "pk_test_1" },
		"payment.stripe.payment_method: must not":   func(c *payment.Config) { c.Gateway, c.Stripe.PaymentMethod = "stripe", "" },
		"payment.stripe.payment_method: is pm_card": func(c *payment.Config) { c.Gateway, c.Stripe.SecretKey = "stripe", "sk_live_1" },
		"payment.stripe.url: is not a URL":          func(c *payment.Config) { c.Gateway, c.Stripe.URL = "stripe", "ftp://x" },
		"payment.stripe.url: sends a secret": func(c *payment.Config) {
			c.Gateway, c.Stripe.SecretKey, c.Stripe.URL = "stripe", "rk_live_1", "http://api.example.com"
		},
		"payment.stripe.timeout: ":           func(c *payment.Config) { c.Gateway, c.Stripe.Timeout = "stripe", 0 },
		"payment.stripe.webhook_secret: ":    func(c *payment.Config) { c.Stripe.WebhookSecret = "whsec_1, 2" },
		"payment.stripe.webhook_tolerance: ": func(c *payment.Config) { c.Stripe.WebhookTolerance = 0 },
	} {
		cfg := payment.DefaultConfig()
		change(&cfg)

		if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("expected %q, got %v", want, err)
		}
	}

	cfg := payment.DefaultConfig()
	cfg.Stripe.SecretKey, cfg.Stripe.WebhookSecret = postgres.Secret("sk_test_1"), "whsec_1,whsec_2"
	cfg.Gateway = "stripe"

	if err := cfg.Validate(); err != nil {
		t.Error(err)
	}
}

func TestTheSimulatedGatewayDecidesLater(t *testing.T) {
	t.Parallel()

	gateway := newGateway(t, simulatedConfig(
		payment.Rule{Order: "paid", Action: "pending", Times: 2}, payment.Rule{Order: "declined", Action: "pending_then_decline"},
		payment.Rule{Order: "returned", Action: "refund_pending", Times: 2}, payment.Rule{Order: "kept", Action: "refund_pending_then_fail"},
	), pgtest.New(t))

	// A lookup also asks the provider.
	for i, by := range []struct {
		name string
		ask  func(context.Context, payment.Charge) (payment.Outcome, error)
	}{{"charge", gateway.Charge}, {"find", gateway.Find}} {
		for order, c := range map[string]struct {
			pending  int
			declined string
		}{"paid": {2, ""}, "declined": {1, "the card was declined"}} {
			charge := chargeFor(order)
			charge.Attempt = i + 1

			_, err := gateway.Charge(t.Context(), charge)
			for range c.pending {
				if !errors.Is(err, payment.ErrPending) || len(ledger(t, gateway, order)) != map[string]int{"paid": i}[order] {
					t.Errorf("%s %s: got %v, expected a pending charge", by.name, order, err)
				}

				_, err = by.ask(t.Context(), charge)
			}

			if outcome, err := by.ask(t.Context(), charge); err != nil || outcome.Declined != c.declined || outcome.Captured() != (c.declined == "") {
				t.Errorf("%s %s: got %+v, %v", by.name, order, outcome, err)
			}
		}
	}

	for order, want := range map[string]string{"returned": "", "kept": "the payment provider refused: the refund failed"} {
		outcome, err := gateway.Charge(t.Context(), chargeFor(order))
		if err != nil {
			t.Fatal(err)
		}

		refund := payment.Refund{OrderID: order, TransactionID: outcome.TransactionID}

		for range map[string]int{"returned": 2, "kept": 1}[order] {
			if _, err := gateway.Refund(t.Context(), refund); !errors.Is(err, payment.ErrPending) || ledger(t, gateway, order)[0].Refunded.IsPositive() {
				t.Errorf("%s: got %v, expected a pending refund", order, err)
			}
		}

		_, err = gateway.Refund(t.Context(), refund)
		if (err == nil) != (want == "") || err != nil && err.Error() != want || ledger(t, gateway, order)[0].Refunded.IsPositive() != (want == "") {
			t.Errorf("%s: got %v, expected %q", order, err, want)
		}
	}
}
