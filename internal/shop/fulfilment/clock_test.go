package fulfilment_test

import (
	"testing"
	"time"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/outbox"
	"github.com/millracehq/millrace/internal/shop/fulfilment"
	"github.com/millracehq/millrace/internal/shop/payment"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// The sweep counts only time during which orders can be paid. The timeout is 15 minutes.
func TestTimeDoesNotRunWhileOrdersCannotBePaid(t *testing.T) {
	t.Parallel()

	for _, c := range []struct {
		name   string
		stalls string // start and end, in minutes before now
		due    string // the orders that are due, of those aged 14, 16, 29, 31, 44 and 46 minutes
	}{
		{"it always ran", ``, "16 29 31 44 46"},
		{"it has been suspended since the order of 16 minutes", `(16.5, 0)`, "44 46"},
		{"it has been stopped for an hour", `(60, 0)`, ""},
		{"it was stopped, and then for as long again for the backlog", `(31.5, 20)`, "44 46"},
		{"the backlog gets at most the timeout", `(90, 28), (20, 17)`, ""},
		{"two stalls", `(25, 23), (12, 11)`, "29 31 44 46"},
		{"a stall that ended long ago", `(600, 120)`, "16 29 31 44 46"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()

			s := newShop(t)

			exec := func(sql string) {
				if _, err := s.pool.Exec(t.Context(), sql); err != nil {
					t.Fatal(err)
				}
			}

			exec(`UPDATE expiry_cursor SET at = now() - interval '1 day', ticked_at = now()`)

			for _, age := range []string{"14", "16", "29", "31", "44", "46"} {
				s.placed(t, age)
				exec(`UPDATE orders SET created_at = now() - interval '` + age + ` minutes' WHERE id = '` + age + `'`)
			}

			if c.stalls != "" {
				exec(`INSERT INTO payment_stalls SELECT now() - a * interval '1 minute', now() - b * interval '1 minute' FROM (VALUES ` + c.stalls + `) AS v (a, b)`)
			}

			exec(`TRUNCATE outbox`)

			s.sweep(t, fulfilment.DefaultConfig().PaymentTimeout)
			expect(t, pgtest.Value[string](t, s.pool, `SELECT coalesce(string_agg(key, ' ' ORDER BY key), '') FROM outbox`), c.due)
		})
	}
}

// A stall that one replica sees counts for all replicas, and survives restarts.
func TestTheClockOfUnpaidOrdersIsShared(t *testing.T) {
	t.Parallel()

	s := newShop(t)
	cfg := fulfilment.Config{PaymentTimeout: time.Minute} // ticks every 5 s
	seeing := func(why string) func() {
		sweeper := fulfilment.NewSweeper(cfg, s.pool, outbox.Append, func(...string) string { return why }, pgtest.Logger(t))

		return func() {
			t.Helper()

			if err := sweeper.Sweep(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	sees, doesNotSee := seeing("fulfilment.charge is waiting for payment gateway"), seeing("")
	// shift ages everything stored, as if time had passed.
	shift := func(by string) {
		_, err := s.pool.Exec(t.Context(), `
			WITH c AS (UPDATE expiry_cursor SET ticked_at = ticked_at - $1::interval, stalled_at = stalled_at - $1::interval)
			UPDATE payment_stalls SET began_at = began_at - $1::interval, ended_at = ended_at - $1::interval`, by)
		if err != nil {
			t.Fatal(err)
		}
	}
	stalls := func() string {
		return pgtest.Value[string](t, s.pool, `
			SELECT coalesce(string_agg(5 * round(extract(epoch FROM now() - began_at) / 5) || '-' || 5 * round(extract(epoch FROM now() - ended_at) / 5), ' '
				ORDER BY began_at), '') FROM payment_stalls`)
	}

	s.unswept(t)
	doesNotSee()
	expect(t, stalls(), "")
	shift("5s")
	sees() // the 5 s since the last tick count as stalled
	expect(t, stalls(), "5-0")
	shift("5s")
	doesNotSee() // another replica, which has not tried the gateway
	expect(t, stalls(), "10-0")
	shift("20s")
	doesNotSee() // longer than three ticks: no service was running
	expect(t, stalls(), "30-0")
	shift("5s")
	doesNotSee()
	expect(t, stalls(), "35-5")
	shift("5s")
	sees()
	expect(t, stalls(), "40-10 5-0")
}

// An order whose payment request is waiting, blocked or stopped does not expire.
func TestAnOrderThatIsNotServedGetsItsTimeAgain(t *testing.T) {
	t.Parallel()

	s := newShop(t)
	s.placed(t, "served")
	s.placed(t, "unserved")
	s.unserved = []string{"unserved"}

	due := func() (out []event.Outgoing) {
		t.Helper()

		var events []event.Event[fulfilment.ExpiryDue]
		for _, id := range []string{"served", "unserved"} {
			events = append(events, event.Event[fulfilment.ExpiryDue]{Payload: fulfilment.ExpiryDue{OrderID: id}})
		}

		verdicts, err := s.process.AdmitExpiry(t.Context(), s.pool, events)
		if err != nil {
			t.Fatal(err)
		}

		var results []event.Effected[fulfilment.ExpiryDue, payment.Outcome]

		for i, e := range events {
			result := event.Effected[fulfilment.ExpiryDue, payment.Outcome]{Event: e}

			if verdicts[i] == nil {
				result.Result = &payment.Outcome{} // the gateway knows of no charge
			}

			results = append(results, result)
		}

		out, err = run(s, s.process.Expire, results...)
		if err != nil {
			t.Fatal(err)
		}

		return out
	}

	out := due()
	expect(t, s.status("served"), "expired v3: OrderCreated InventoryReserved OrderExpired")
	expect(t, s.status("unserved"), "inventory_reserved v2: OrderCreated InventoryReserved")

	again := out[len(out)-1]
	if again.Payload != any(fulfilment.ExpiryDue{OrderID: "unserved"}) || again.Delay != fulfilment.DefaultConfig().PaymentTimeout || len(out) != 2 {
		t.Errorf("published %+v", out)
	}

	s.unserved = nil
	due()
	expect(t, s.status("unserved"), "expired v3: OrderCreated InventoryReserved OrderExpired")
}
