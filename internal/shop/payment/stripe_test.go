package payment_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/shop/money"
	"github.com/millracehq/millrace/internal/shop/payment"
	"github.com/millracehq/millrace/internal/test/paymenttest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

func stripeConfig(url string) payment.Config {
	cfg := payment.DefaultConfig()
	cfg.Gateway = "stripe"
	cfg.Stripe.SecretKey, cfg.Stripe.URL = "sk_test_hunter2", url

	return cfg
}

func newGateway(tb testing.TB, cfg payment.Config, pool *pgxpool.Pool) payment.Gateway {
	tb.Helper()

	if err := cfg.Validate(); err != nil {
		tb.Fatal(err)
	}

	gateway, err := payment.NewGateway(cfg, pool)
	if err != nil {
		tb.Fatal(err)
	}

	return gateway
}

func chargeFor(orderID string) payment.Charge {
	return payment.Charge{OrderID: orderID, Attempt: 1, Amount: money.MustParse("99.99"), Currency: "USD"}
}

// refundOf requests the refund of a charge that chargeFor returned.
func refundOf(orderID string, outcome payment.Outcome) payment.Refund {
	return payment.Refund{OrderID: orderID, TransactionID: outcome.TransactionID, Amount: money.MustParse("99.99"), Currency: "USD"}
}

// expectRetryable fails the test unless err permits a retry, and returns the
// delay before it.
func expectRetryable(tb testing.TB, err error) time.Duration {
	tb.Helper()

	l, put := errors.AsType[*event.LaterError](err)
	away, down := errors.AsType[*event.UnavailableError](err)

	if !put && (!down || away.Dependency != payment.Dependency) {
		tb.Fatalf("got %v, expected a retryable error", err)
	}

	if strings.Contains(err.Error(), "hunter2") {
		tb.Errorf("a secret is in %q", err)
	}

	if down {
		return 0
	}

	return l.After
}

// settle charges until the outcome is known, each time through a new gateway, and returns
// the outcome and the errors before it.
func settle(tb testing.TB, open func() payment.Gateway, charge payment.Charge) (payment.Outcome, []error) {
	tb.Helper()

	var errs []error

	for range 50 {
		outcome, err := open().Charge(tb.Context(), charge)
		if err == nil {
			return outcome, errs
		}

		expectRetryable(tb, err)

		errs = append(errs, err)
	}

	tb.Fatalf("the outcome of %s stays unknown: %v", charge.OrderID, errors.Join(errs...))

	return payment.Outcome{}, nil
}

// failure describes how the first requests of an operation fail.
type failure struct {
	name      string
	operation string
	faults    []paymenttest.Fault
	unknown   bool // whether that leaves the charge's outcome unknown
}

func TestStripeChargesOnceDespiteFailures(t *testing.T) {
	t.Parallel()

	pool := pgtest.New(t)

	for _, c := range []failure{
		{"no failure", paymenttest.OpCreate, nil, false},
		{"create is lost", paymenttest.OpCreate, []paymenttest.Fault{paymenttest.Lost}, true},
		{"create succeeds, the answer is lost", paymenttest.OpCreate, []paymenttest.Fault{paymenttest.AfterLost, paymenttest.AfterLost}, true},
		{"create succeeds, answers 500", paymenttest.OpCreate, []paymenttest.Fault{paymenttest.AfterError}, true},
		{"create fails, 500 is replayed", paymenttest.OpCreate, []paymenttest.Fault{paymenttest.StoredError}, true},
		{"not charged, 500 is replayed", paymenttest.OpConfirm, []paymenttest.Fault{paymenttest.StoredError}, true},
		{"create is busy", paymenttest.OpCreate, []paymenttest.Fault{paymenttest.Busy}, false},
		{"confirm is lost", paymenttest.OpConfirm, []paymenttest.Fault{paymenttest.Lost}, true},
		{"charged, the answer is lost", paymenttest.OpConfirm, []paymenttest.Fault{paymenttest.AfterLost}, true},
		{"charged, the answer is late", paymenttest.OpConfirm, []paymenttest.Fault{paymenttest.AfterSlow}, true},
		{"charged, the answer is truncated", paymenttest.OpConfirm, []paymenttest.Fault{paymenttest.AfterGarbled}, true},
		{"charged, answers 500", paymenttest.OpConfirm, []paymenttest.Fault{paymenttest.AfterError}, true},
		{"not charged, 500 three times", paymenttest.OpConfirm, []paymenttest.Fault{paymenttest.Error, paymenttest.Error, paymenttest.Error}, true},
		{"busy", paymenttest.OpConfirm, []paymenttest.Fault{paymenttest.Busy}, false},
		{"the key is in use", paymenttest.OpConfirm, []paymenttest.Fault{paymenttest.InUse}, true},
	} {
		for _, forgetful := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, keys forgotten %t", c.name, forgetful), func(t *testing.T) {
				t.Parallel()
				chargesOnce(t, pool, c, forgetful)
			})
		}
	}
}

// chargesOnce fails the test unless an order is charged once despite the server's
// failures. A forgetful server forgets its idempotency keys before each attempt.
func chargesOnce(t *testing.T, pool *pgxpool.Pool, c failure, forgetful bool) {
	t.Helper()

	server, order := paymenttest.NewServer(t), t.Name()
	cfg := stripeConfig(server.URL)
	cfg.Stripe.Timeout = 500 * time.Millisecond
	server.Fail(c.operation, c.faults...)

	outcome, errs := settle(t, func() payment.Gateway {
		if forgetful {
			server.ForgetKeys()
		}

		return newGateway(t, cfg, pool)
	}, chargeFor(order))

	if captures, _, net := server.Captured(order); captures != 1 || net != 9999 || !outcome.Captured() {
		t.Errorf("captured %d times, %d in all, outcome %+v", captures, net, outcome)
	}

	if len(errs) < len(c.faults) {
		t.Errorf("got errors %v, expected %d", errs, len(c.faults))
	}

	for _, err := range errs {
		unknown := errors.Is(err, payment.ErrUnknown)
		_, down := errors.AsType[*event.UnavailableError](err)

		if unknown != c.unknown || down != c.unknown {
			t.Errorf("%v: unknown %t, unavailable %t, expected %t", err, unknown, down, c.unknown)
		}

		if c.faults[0] == paymenttest.Busy && expectRetryable(t, err) != paymenttest.RetryAfter {
			t.Errorf("waits %s, expected the Retry-After", expectRetryable(t, err))
		}
	}

	repeated, err := newGateway(t, cfg, pool).Charge(t.Context(), chargeFor(order))
	if err != nil || repeated != outcome {
		t.Errorf("repeated: %+v, %v, expected %+v", repeated, err, outcome)
	}
}

func TestFindReturnsTheOutcomeOfAFailedRequest(t *testing.T) {
	t.Parallel()

	server, pool := paymenttest.NewServer(t), pgtest.New(t)
	gateway := newGateway(t, stripeConfig(server.URL), pool)
	charge := chargeFor(`it's \ an order`)

	if found, err := gateway.Find(t.Context(), charge); found != (payment.Outcome{}) || err != nil {
		t.Errorf("before any request: found %+v, %v", found, err)
	}

	server.Fail(paymenttest.OpConfirm, paymenttest.Lost, paymenttest.AfterLost)

	for _, charged := range []bool{false, true} {
		_, err := gateway.Charge(t.Context(), charge)
		expectRetryable(t, err)

		found, err := gateway.Find(t.Context(), charge)
		if err != nil || found.Captured() != charged || found.Declined != "" {
			t.Errorf("charged %t: found %+v, %v", charged, found, err)
		}
	}

	// A database restored from a backup has no record, but Stripe's index has one.
	if _, err := pool.Exec(t.Context(), `DELETE FROM stripe_intents`); err != nil {
		t.Fatal(err)
	}

	if found, err := gateway.Find(t.Context(), charge); err != nil || !found.Captured() {
		t.Errorf("without a record: found %+v, %v", found, err)
	}

	charge.Attempt = 2

	if found, err := gateway.Find(t.Context(), charge); found != (payment.Outcome{}) || err != nil {
		t.Errorf("another attempt: found %+v, %v", found, err)
	}

	server.Fail(paymenttest.OpSearch, paymenttest.Error)

	_, err := gateway.Find(t.Context(), charge)
	expectRetryable(t, err)
}

func TestStripeDeclinesACard(t *testing.T) {
	t.Parallel()

	server := paymenttest.NewServer(t)
	gateway := newGateway(t, stripeConfig(server.URL), pgtest.New(t))
	server.Decline("declined", "insufficient_funds")

	for range 2 {
		outcome, err := gateway.Charge(t.Context(), chargeFor("declined"))
		if err != nil || outcome.Declined != "Your card was declined. (insufficient_funds)" || outcome.Captured() {
			t.Errorf("got %+v, %v", outcome, err)
		}
	}

	if found, err := gateway.Find(t.Context(), chargeFor("declined")); err != nil || found.Declined == "" {
		t.Errorf("found %+v, %v", found, err)
	}

	notCaptured(t, server, "declined")
}

func TestImpossibleAmountsAreNotCharged(t *testing.T) {
	t.Parallel()

	server := paymenttest.NewServer(t)
	gateway := newGateway(t, stripeConfig(server.URL), pgtest.New(t))
	small := chargeFor("small")
	small.Amount = money.MustParse("0.1")

	if outcome, err := gateway.Charge(t.Context(), small); err != nil || !strings.Contains(outcome.Declined, "amount_too_small") {
		t.Errorf("too small: %+v, %v", outcome, err)
	}

	before := server.Requests(paymenttest.OpCreate)
	nothing := chargeFor("nothing")
	nothing.Amount = money.MustParse("0")

	if outcome, err := gateway.Charge(t.Context(), nothing); err != nil || outcome.Declined != "amount must be above zero" {
		t.Errorf("nothing: %+v, %v", outcome, err)
	}

	odd := chargeFor("odd")
	odd.Amount, odd.Currency = money.MustParse("5.123"), "KWD"

	_, err := gateway.Charge(t.Context(), odd)
	if _, rejected := errors.AsType[*event.RejectError](err); !rejected {
		t.Errorf("an amount that cannot be expressed: %v", err)
	}

	if server.Requests(paymenttest.OpCreate) != before {
		t.Error("Stripe was asked to charge an impossible amount")
	}

	notCaptured(t, server, "small", "nothing", "odd")
}

func notCaptured(t *testing.T, server *paymenttest.Server, orders ...string) {
	t.Helper()

	for _, order := range orders {
		if captures, _, _ := server.Captured(order); captures != 0 {
			t.Errorf("%s was captured", order)
		}
	}
}

func TestAnAttemptHasOneAmount(t *testing.T) {
	t.Parallel()

	gateway := newGateway(t, stripeConfig(paymenttest.NewServer(t).URL), pgtest.New(t))

	if _, err := gateway.Charge(t.Context(), chargeFor("order")); err != nil {
		t.Fatal(err)
	}

	other := chargeFor("order")
	other.Amount = money.MustParse("1")

	_, err := gateway.Charge(t.Context(), other)
	if rejection, ok := errors.AsType[*event.RejectError](err); !ok || rejection.Reason != event.ReasonConflict {
		t.Errorf("the same attempt with another amount: %v", err)
	}
}

func TestStripeIsUnreachableAndRecovers(t *testing.T) {
	t.Parallel()

	server, pool := paymenttest.NewServer(t), pgtest.New(t)
	closed := httptest.NewServer(server)
	closed.Close()

	_, err := newGateway(t, stripeConfig(closed.URL), pool).Charge(t.Context(), chargeFor("order"))
	expectRetryable(t, err)

	if !errors.Is(err, payment.ErrUnknown) {
		t.Errorf("got %v, expected an unknown outcome", err)
	}

	outcome, err := newGateway(t, stripeConfig(server.URL), pool).Charge(t.Context(), chargeFor("order"))
	if err != nil || !outcome.Captured() {
		t.Errorf("got %+v, %v", outcome, err)
	}
}

func TestARevokedKeyMakesStripeUnavailable(t *testing.T) {
	t.Parallel()

	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = io.WriteString(w, `{"error": {"type": "invalid_request_error", "message": "Expired API Key provided"}}`)
	}))
	t.Cleanup(server.Close)

	gateway := newGateway(t, stripeConfig(server.URL), pgtest.New(t))

	_, err := gateway.Charge(t.Context(), chargeFor("order"))
	if _, down := errors.AsType[*event.UnavailableError](err); !down || !strings.Contains(err.Error(), "Expired API Key") {
		t.Errorf("got %v", err)
	}
}

func TestChangingThePaymentMethodBetweenAttemptsChargesOnce(t *testing.T) {
	t.Parallel()

	server, pool := paymenttest.NewServer(t), pgtest.New(t)
	cfg := stripeConfig(server.URL)
	server.Fail(paymenttest.OpCreate, paymenttest.AfterLost)

	_, err := newGateway(t, cfg, pool).Charge(t.Context(), chargeFor("order"))
	expectRetryable(t, err)

	cfg.Stripe.PaymentMethod = "pm_card_mastercard"

	outcome, err := newGateway(t, cfg, pool).Charge(t.Context(), chargeFor("order"))
	if captures, _, _ := server.Captured("order"); err != nil || !outcome.Captured() || captures != 1 {
		t.Errorf("got %+v, %v, captured %d times", outcome, err, captures)
	}
}

func TestStripeRefundsOnceDespiteFailures(t *testing.T) {
	t.Parallel()

	pool := pgtest.New(t)

	for _, fault := range []paymenttest.Fault{
		paymenttest.None, paymenttest.Lost, paymenttest.Error, paymenttest.StoredError, paymenttest.AfterLost, paymenttest.AfterError,
		paymenttest.AfterGarbled, paymenttest.Busy, paymenttest.InUse,
	} {
		for _, forgetful := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, keys forgotten %t", fault, forgetful), func(t *testing.T) {
				t.Parallel()

				server, order := paymenttest.NewServer(t), t.Name()
				gateway := newGateway(t, stripeConfig(server.URL), pool)

				outcome, err := gateway.Charge(t.Context(), chargeFor(order))
				if err != nil {
					t.Fatal(err)
				}

				refund := refundOf(order, outcome)
				server.Fail(paymenttest.OpRefund, fault)

				if _, err = gateway.Refund(t.Context(), refund); fault != paymenttest.None {
					expectRetryable(t, err)
				} else if err != nil {
					t.Fatal(err)
				}

				for range 2 {
					if forgetful {
						server.ForgetKeys()
					}

					if id, err := gateway.Refund(t.Context(), refund); err != nil || id != "re_000000" {
						t.Errorf("got %q, %v", id, err)
					}
				}

				if _, refunds, net := server.Captured(order); refunds != 1 || net != 0 {
					t.Errorf("refunded %d times, %d remain", refunds, net)
				}
			})
		}
	}
}

func TestARefundOfAnUnknownCaptureIsRefused(t *testing.T) {
	t.Parallel()

	server := paymenttest.NewServer(t)
	refund := payment.Refund{OrderID: "order", TransactionID: "pi_none", Amount: money.MustParse("1"), Currency: "USD"}

	_, err := newGateway(t, stripeConfig(server.URL), pgtest.New(t)).Refund(t.Context(), refund)
	if _, refused := errors.AsType[*payment.RefusedError](err); !refused {
		t.Errorf("got %v", err)
	}
}

func TestTheLedgerOfStripeIsReadInPages(t *testing.T) {
	t.Parallel()

	server, pool := paymenttest.NewServer(t), pgtest.New(t)
	gateway := newGateway(t, stripeConfig(server.URL), pool)

	const orders = 230

	for i := range orders {
		server.Give(int64(1000+i), "usd", map[string]string{"source": "millrace", "order_id": fmt.Sprint(i), "attempt": "1"})
	}

	server.Give(77, "usd", map[string]string{"order_id": "1"}) // another system's

	outcome, err := gateway.Charge(t.Context(), chargeFor("back"))
	if err != nil {
		t.Fatal(err)
	}

	if _, err := gateway.Refund(t.Context(), refundOf("back", outcome)); err != nil {
		t.Fatal(err)
	}

	seen := map[string]payment.Entry{}

	err = gateway.Ledger(t.Context(), time.Now().Add(-time.Hour), func(e payment.Entry) error {
		seen[e.OrderID] = e

		return nil
	})
	if err != nil || len(seen) != orders+1 || server.Requests(paymenttest.OpList) != 3 {
		t.Errorf("%d entries by %d requests, %v", len(seen), server.Requests(paymenttest.OpList), err)
	}

	if e := seen["back"]; !e.Amount.Equal(money.MustParse("99.99")) || !e.Refunded.Equal(e.Amount) || e.Currency != "USD" {
		t.Errorf("the refunded one is %+v", e)
	}

	if e := seen["1"]; !e.Amount.Equal(money.MustParse("10.01")) || e.Refunded.IsPositive() {
		t.Errorf("the second one is %+v", e)
	}

	broken := errors.New("stop")

	if err := gateway.Ledger(t.Context(), time.Time{}, func(payment.Entry) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("got %v, expected the error of the callback", err)
	}

	if err := gateway.Ledger(t.Context(), time.Now().Add(time.Hour), func(payment.Entry) error { return broken }); err != nil {
		t.Errorf("an entry is in the future: %v", err)
	}
}

func TestStripeUnderChaos(t *testing.T) {
	t.Parallel()

	server := paymenttest.NewServer(t)
	gateway := newGateway(t, stripeConfig(server.URL), pgtest.New(t))
	failAtRandom(t, server)

	for i := range 30 {
		order := fmt.Sprintf("order-%d", i)
		if i%5 == 0 {
			server.Decline(order, "do_not_honor")
		}

		outcomes := chargeConcurrently(t, server, gateway, order)

		for _, outcome := range outcomes {
			if outcome != outcomes[0] {
				t.Errorf("%s: the processes got %+v", order, outcomes)
			}
		}

		if captures, _, _ := server.Captured(order); (captures == 1) != outcomes[0].Captured() || captures > 1 {
			t.Fatalf("%s: captured %d times, outcome %+v", order, captures, outcomes[0])
		}

		if outcomes[0].Captured() {
			refundUntilDone(t, gateway, refundOf(order, outcomes[0]))
		}

		if captures, refunds, net := server.Captured(order); net != 0 || refunds != captures {
			t.Fatalf("%s: captured %d times, refunded %d times, %d remain", order, captures, refunds, net)
		}
	}
}

// failAtRandom makes two out of five requests to a server fail.
func failAtRandom(t *testing.T, server *paymenttest.Server) {
	t.Helper()

	seed := rand.Uint64()
	t.Logf("seed %d", seed)

	chance := rand.New(rand.NewPCG(seed, 0))
	faults := []paymenttest.Fault{
		paymenttest.Lost, paymenttest.Error, paymenttest.StoredError, paymenttest.AfterLost, paymenttest.AfterError,
		paymenttest.AfterGarbled, paymenttest.Busy, paymenttest.InUse,
	}

	server.Plan(func(string) paymenttest.Fault { // one at a time
		if chance.IntN(5) < 2 {
			return faults[chance.IntN(len(faults))]
		}

		return paymenttest.None
	})
}

// chargeConcurrently charges for an order in three processes until each has an outcome.
// Whenever the first process fails, the server forgets its idempotency keys.
func chargeConcurrently(t *testing.T, server *paymenttest.Server, gateway payment.Gateway, order string) (outcomes [3]payment.Outcome) {
	t.Helper()

	var wait sync.WaitGroup

	for p := range outcomes {
		wait.Go(func() {
			for t.Context().Err() == nil {
				outcome, err := gateway.Charge(t.Context(), chargeFor(order))
				if err == nil {
					outcomes[p] = outcome

					return
				}

				if _, rejected := errors.AsType[*event.RejectError](err); rejected {
					t.Errorf("%s: %v", order, err)

					return
				}

				if p == 0 {
					server.ForgetKeys()
				}
			}
		})
	}

	wait.Wait()

	return outcomes
}

func refundUntilDone(t *testing.T, gateway payment.Gateway, refund payment.Refund) {
	t.Helper()

	for range 2 { // the second finds the refund of the first
		pgtest.Eventually(t, refund.OrderID+" is refunded", func() bool {
			_, err := gateway.Refund(context.WithoutCancel(t.Context()), refund)

			return err == nil
		})
	}
}

func TestAPreliminaryAnswerIsNotAnOutcome(t *testing.T) {
	t.Parallel()

	server, pool := paymenttest.NewServer(t), pgtest.New(t)
	gateway := newGateway(t, stripeConfig(server.URL), pool)

	for _, c := range []struct {
		status   string
		captured bool
	}{
		{"processing", true}, {"processing", false}, {"requires_capture", true}, {"requires_capture", false}, {"a status of the future", true},
	} {
		order := fmt.Sprintf("%s, then captured %t", c.status, c.captured)
		server.Hold(order, c.status)

		for name, ask := range map[string]func() (payment.Outcome, error){
			"charge": func() (payment.Outcome, error) { return gateway.Charge(t.Context(), chargeFor(order)) },
			"find":   func() (payment.Outcome, error) { return gateway.Find(t.Context(), chargeFor(order)) },
		} {
			if _, err := gateway.Charge(t.Context(), chargeFor(order)); err == nil {
				t.Fatalf("%s: is charged", order)
			}

			outcome, err := ask()
			later, ok := errors.AsType[*event.LaterError](err)

			if !ok || !later.Pending || !errors.Is(err, payment.ErrPending) || outcome != (payment.Outcome{}) {
				t.Errorf("%s: %s: got %+v, %v, expected a pending charge", order, name, outcome, err)
			} else if later.After != 5*time.Second {
				t.Errorf("%s: %s: waits %s", order, name, later.After)
			}
		}

		server.Settle(order, c.captured)

		outcome, err := gateway.Charge(t.Context(), chargeFor(order))
		found, findErr := gateway.Find(t.Context(), chargeFor(order))

		if err != nil || findErr != nil || outcome != found || outcome.Captured() != c.captured || (outcome.Declined == "") != c.captured {
			t.Errorf("%s: got %+v, %v; found %+v, %v", order, outcome, err, found, findErr)
		}
	}
}

// The pause grows with the charge's age.
func TestAPendingChargeIsAskedAboutLessAndLess(t *testing.T) {
	t.Parallel()

	server, pool := paymenttest.NewServer(t), pgtest.New(t)
	gateway := newGateway(t, stripeConfig(server.URL), pool)
	server.Hold("order", "processing")

	if _, err := gateway.Charge(t.Context(), chargeFor("order")); !errors.Is(err, payment.ErrPending) {
		t.Fatalf("got %v", err)
	}

	for age, want := range map[time.Duration]time.Duration{10 * time.Minute: 5 * time.Minute, 90 * time.Minute: 45 * time.Minute, 72 * time.Hour: time.Hour} {
		server.Age("order", age)

		var later *event.LaterError
		if _, err := gateway.Find(t.Context(), chargeFor("order")); !errors.As(err, &later) || later.After < want || later.After > want+2*time.Second {
			t.Errorf("after %s: got %+v, expected a pause of %s", age, later, want)
		}
	}
}

// An intent that a customer must approve is cancelled before the order ends, so that
// it cannot be approved afterwards.
func TestAChargeThatNeedsTheCustomerIsCancelledAndDeclined(t *testing.T) {
	t.Parallel()

	server, pool := paymenttest.NewServer(t), pgtest.New(t)
	gateway := newGateway(t, stripeConfig(server.URL), pool)
	want := payment.Outcome{Declined: "the customer must approve the payment"}

	server.Hold("order", "requires_action")
	server.Fail(paymenttest.OpCancel, paymenttest.Lost, paymenttest.AfterLost)

	for range 2 {
		_, err := gateway.Charge(t.Context(), chargeFor("order"))
		expectRetryable(t, err)
	}

	server.Settle("order", true) // too late: it is cancelled

	for range 2 {
		if outcome, err := gateway.Charge(t.Context(), chargeFor("order")); err != nil || outcome != want {
			t.Errorf("got %+v, %v", outcome, err)
		}
	}

	if found, err := gateway.Find(t.Context(), chargeFor("order")); err != nil || found != want {
		t.Errorf("found %+v, %v", found, err)
	}

	// The customer was faster.
	server.Hold("approved", "requires_action")
	server.Plan(func(operation string) paymenttest.Fault {
		if operation == paymenttest.OpCancel {
			go server.Settle("approved", true)

			return paymenttest.Lost
		}

		return paymenttest.None
	})

	if outcome, errs := settle(t, func() payment.Gateway { return gateway }, chargeFor("approved")); !outcome.Captured() || len(errs) == 0 {
		t.Errorf("got %+v after %v", outcome, errs)
	}

	if captures, _, _ := server.Captured("order"); captures != 0 {
		t.Errorf("order was captured %d times", captures)
	}
}

func TestARefundIsDoneWhenItHasSucceeded(t *testing.T) {
	t.Parallel()

	for _, c := range []struct{ status, reason, want string }{
		{"succeeded", "", ""},
		{"failed", "lost_or_stolen_card", "the payment provider refused: the refund re_000000 is failed: lost_or_stolen_card"},
		{"canceled", "", "the payment provider refused: the refund re_000000 is canceled"},
	} {
		for _, forgetful := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, keys forgotten %t", c.status, forgetful), func(t *testing.T) {
				t.Parallel()

				server := paymenttest.NewServer(t)
				gateway := newGateway(t, stripeConfig(server.URL), pgtest.New(t))
				server.HoldRefunds("order")

				outcome, err := gateway.Charge(t.Context(), chargeFor("order"))
				if err != nil {
					t.Fatal(err)
				}

				refund := refundOf("order", outcome)

				for range 2 {
					id, err := gateway.Refund(t.Context(), refund)
					later, ok := errors.AsType[*event.LaterError](err)

					if !ok || !later.Pending || !errors.Is(err, payment.ErrPending) || id != "" {
						t.Errorf("got %q, %v, expected a pending refund", id, err)
					}

					if forgetful {
						server.ForgetKeys()
					}
				}

				server.SettleRefunds("order", c.status, c.reason)

				id, err := gateway.Refund(t.Context(), refund)

				if c.want == "" && (err != nil || id != "re_000000") {
					t.Errorf("got %q, %v", id, err)
				}

				if _, refused := errors.AsType[*payment.RefusedError](err); c.want != "" && (!refused || err.Error() != c.want) {
					t.Errorf("got %v, expected %s", err, c.want)
				}

				if n := server.Requests(paymenttest.OpRefund); n != 1 {
					t.Errorf("%d refunds were requested, expected one, whatever became of it", n)
				}
			})
		}
	}
}

// charged returns a gateway that has charged an order.
func charged(t *testing.T) (*paymenttest.Server, payment.Gateway, payment.Outcome) {
	t.Helper()

	server := paymenttest.NewServer(t)
	gateway := newGateway(t, stripeConfig(server.URL), pgtest.New(t))

	outcome, err := gateway.Charge(t.Context(), chargeFor("order"))
	if err != nil {
		t.Fatal(err)
	}

	return server, gateway, outcome
}

// After a refund has failed, a person refunds by other means.
func TestAFailedRefundIsNotRepeatedButAnotherIsFound(t *testing.T) {
	t.Parallel()

	server, gateway, outcome := charged(t)
	refund := refundOf("order", outcome)

	first, err := gateway.Refund(t.Context(), refund)
	if err != nil {
		t.Fatal(err)
	}

	server.SettleRefunds("order", "failed", "expired_or_canceled_card")
	server.ForgetKeys()

	made := server.Requests(paymenttest.OpRefund)
	again := refund
	again.FailedID = first

	_, err = gateway.Refund(t.Context(), again)
	if _, refused := errors.AsType[*payment.RefusedError](err); !refused || server.Requests(paymenttest.OpRefund) != made {
		t.Errorf("got %v after %d requests", err, server.Requests(paymenttest.OpRefund)-made)
	}

	byHand := server.RefundByHand(outcome.TransactionID, 9999, "succeeded")

	if found, err := gateway.Refund(t.Context(), again); err != nil || found != byHand {
		t.Errorf("found %q, %v, expected %s", found, err, byHand)
	}
}

// refundInParts is a capture of which a person refunds parts by hand.
type refundInParts struct {
	name    string
	parts   []string // made before the request: units and status
	failed  bool     // Millrace's own refund of the rest has failed
	more    []string // made after that
	want    string   // the refund, or the error
	request int      // refunds that Millrace creates
}

// refund requests the refund of the capture. It returns the refund or the error, and the
// number of refunds that Millrace has created. If told, Millrace knows that its own
// refund failed.
func (c refundInParts) refund(t *testing.T, told bool) (got string, requests int) {
	t.Helper()

	server, gateway, outcome := charged(t)
	refund := refundOf("order", outcome)
	refundByHand(t, server, outcome, c.parts)

	if c.failed {
		own, err := gateway.Refund(t.Context(), refund)
		if err != nil {
			t.Fatal(err)
		}

		server.SettleRefund(own, "failed", "lost_card")
		server.ForgetKeys()
		refundByHand(t, server, outcome, c.more)

		if told {
			refund.FailedID = own
		}
	}

	got, err := gateway.Refund(t.Context(), refund)
	if err != nil {
		got = err.Error()
	}

	return got, server.Requests(paymenttest.OpRefund)
}

// refundByHand refunds parts of a capture, each given by its units and status.
func refundByHand(t *testing.T, server *paymenttest.Server, outcome payment.Outcome, parts []string) {
	t.Helper()

	for _, part := range parts {
		var (
			units  int64
			status string
		)

		if _, err := fmt.Sscan(part, &units, &status); err != nil {
			t.Fatal(err)
		}

		server.SettleRefund(server.RefundByHand(outcome.TransactionID, units, "pending"), status, "")
	}
}

// A person refunds parts. A capture is refunded when the refunds that have succeeded
// add up to it.
func TestPartsOfARefundCountTogether(t *testing.T) {
	t.Parallel()

	const (
		pending = "the payment provider has not decided yet: "
		refused = "the payment provider refused: "
	)

	for _, c := range []refundInParts{
		{"the rest is refunded", []string{"4000 succeeded"}, false, nil, "re_000001", 1},
		{"a part is pending", []string{"4000 pending"}, false, nil, pending + "the refund re_000000 is pending", 1},
		{"a part had failed", []string{"4000 failed"}, false, nil, "re_000001", 1},
		{"a person has refunded all", []string{"4000 succeeded", "5999 succeeded"}, false, nil, "re_000001", 1},
		{"the rest fails", []string{"4000 succeeded"}, true, nil, refused + "40 of 99.99 USD is refunded; the refund re_000001 is failed: lost_card", 1},
		{"the rest fails, a person refunds it", []string{"4000 succeeded"}, true, []string{"5999 succeeded"}, "re_000002", 1},
		{"the rest fails, a person is refunding it", []string{"4000 succeeded"}, true, []string{"5999 pending"}, pending + "the refund re_000002 is pending", 1},
		{"the rest fails, a person refunds less", []string{"4000 succeeded"}, true, []string{"5998 pending"}, refused + "40 of 99.99 USD is refunded; the refund re_000001 is failed: lost_card", 1},
	} {
		for _, told := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, the failure is known %t", c.name, told), func(t *testing.T) {
				t.Parallel()

				got, n := c.refund(t, told)
				if got != c.want || n != c.request {
					t.Errorf("got %s by %d requests, expected %s by %d", got, n, c.want, c.request)
				}
			})
		}
	}
}

// A database is restored from a backup and is fed the same messages: its intents are not
// recorded, and only the idempotency keys prevent another charge. Stripe forgets them
// after a day.
func TestARestoredDatabaseChargesAgainOnceStripeHasForgottenTheKeys(t *testing.T) {
	t.Parallel()

	server, pool := paymenttest.NewServer(t), pgtest.New(t)
	gateway := newGateway(t, stripeConfig(server.URL), pool)

	restore := func() (captures int) {
		t.Helper()

		if _, err := pool.Exec(t.Context(), `TRUNCATE stripe_intents`); err != nil {
			t.Fatal(err)
		}

		if _, err := gateway.Charge(t.Context(), chargeFor("order")); err != nil {
			t.Fatal(err)
		}

		captures, _, _ = server.Captured("order")

		return captures
	}

	if n := restore(); n != 1 {
		t.Fatalf("%d captures", n)
	}

	if n := restore(); n != 1 {
		t.Errorf("%d captures within a day, expected 1", n)
	}

	server.ForgetKeys()

	if n := restore(); n != 2 {
		t.Errorf("%d captures after a day, expected 2", n)
	}
}

// Only a webhook tells of a dispute: Stripe's record of the capture, which the audit
// reads, stays the same.
func TestADisputeIsNotInStripesRecord(t *testing.T) {
	t.Parallel()

	server, gateway, _ := charged(t)
	record := func() (entries []payment.Entry) {
		t.Helper()

		if err := gateway.Ledger(t.Context(), time.Now().Add(-time.Hour), func(e payment.Entry) error {
			entries = append(entries, e)

			return nil
		}); err != nil {
			t.Fatal(err)
		}

		return entries
	}

	before := record()
	server.Dispute("order")

	if after := record(); len(before) != 1 || fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("the record was %+v and is %+v", before, after)
	}
}
