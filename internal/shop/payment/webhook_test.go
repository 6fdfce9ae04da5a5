package payment_test

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stripe/stripe-go/v82/webhook"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/outbox"
	"github.com/millracehq/millrace/internal/shop/payment"
	"github.com/millracehq/millrace/internal/test/paymenttest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// receiver is the handler with its own server and database.
type receiver struct {
	tb       testing.TB
	url      string
	pool     *pgxpool.Pool
	registry *prometheus.Registry
}

func newReceiver(tb testing.TB) *receiver {
	tb.Helper()

	cfg := stripeConfig("http://localhost")
	cfg.Stripe.WebhookSecret = "whsec_new,whsec_old"

	r := &receiver{tb: tb, pool: pgtest.New(tb), registry: prometheus.NewRegistry()}
	handler := payment.NewWebhook(cfg, r.pool, outbox.Append, pgtest.Logger(tb), r.registry)
	server := httptest.NewServer(handler)
	r.url = server.URL
	tb.Cleanup(server.Close)

	return r
}

// post sends a body signed with a secret at a given time.
func (r *receiver) post(body, secret string, at time.Time) int {
	r.tb.Helper()

	signed := webhook.GenerateTestSignedPayload(&webhook.UnsignedPayload{Payload: []byte(body), Secret: secret, Timestamp: at})

	return r.send(body, signed.Header)
}

func (r *receiver) send(body, signature string) int {
	r.tb.Helper()

	request, err := http.NewRequestWithContext(r.tb.Context(), http.MethodPost, r.url, bytes.NewReader([]byte(body)))
	if err != nil {
		r.tb.Fatal(err)
	}

	request.Header.Set("Stripe-Signature", signature)

	response, err := http.DefaultClient.Do(request)
	if err != nil {
		r.tb.Fatal(err)
	}

	_ = response.Body.Close()

	return response.StatusCode
}

// published returns the payloads in the outbox.
func (r *receiver) published() []payment.Reported {
	r.tb.Helper()

	rows, err := r.pool.Query(r.tb.Context(), `SELECT topic, key, payload FROM outbox ORDER BY seq`)
	if err != nil {
		r.tb.Fatal(err)
	}
	defer rows.Close()

	var reports []payment.Reported

	for rows.Next() {
		var (
			topic, key string
			payload    []byte
		)

		if err := rows.Scan(&topic, &key, &payload); err != nil {
			r.tb.Fatal(err)
		}

		report, err := event.Decode[payment.Reported](payload)
		if err != nil || topic != "payments.reported" || key != report.OrderID {
			r.tb.Errorf("%s with key %s: %s is not a report: %v", topic, key, payload, err)
		}

		reports = append(reports, report)
	}

	if err := rows.Err(); err != nil {
		r.tb.Fatal(err)
	}

	return reports
}

// counted returns the number of webhooks with an outcome.
func (r *receiver) counted(outcome string) (n float64) {
	r.tb.Helper()

	families, err := r.registry.Gather()
	if err != nil {
		r.tb.Fatal(err)
	}

	for _, family := range families {
		for _, metric := range family.GetMetric() {
			for _, label := range metric.GetLabel() {
				if label.GetName() == "outcome" && label.GetValue() == outcome {
					n += metric.GetCounter().GetValue()
				}
			}
		}
	}

	return n
}

// accept records the charge pi_known of the order "known", posts a webhook, and checks
// that the webhook is accepted with the outcome.
func (r *receiver) accept(webhook, outcome string) {
	r.tb.Helper()

	if _, err := r.pool.Exec(r.tb.Context(), `INSERT INTO stripe_intents VALUES ('k', 'known', 3, 'pi_known')`); err != nil {
		r.tb.Fatal(err)
	}

	if status := r.post(webhook, "whsec_new", time.Now()); status != http.StatusOK {
		r.tb.Errorf("answered %d", status)
	}

	if n := r.counted(outcome); n != 1 {
		r.tb.Errorf("%s: counted %v times", outcome, n)
	}
}

func stripeEvent(id, kind, object, more string) string {
	return fmt.Sprintf(`{"id": %q, "object": "event", "api_version": "2020-01-01", "type": %q, "data": {"object": %s %s}}`, id, kind, object, more)
}

const (
	ours      = `"metadata": {"source": "millrace", "order_id": "order", "attempt": "2"}`
	succeeded = `{"id": "pi_1", "amount": 9999, "amount_received": 9999, "currency": "usd", "status": "succeeded", ` + ours + `}`
	failed    = `{"id": "pi_1", "amount": 500, "currency": "jpy", "status": "requires_payment_method", ` + ours + `,
		"last_payment_error": {"code": "card_declined", "decline_code": "lost_card", "message": "Your card was declined."}}`
	refunded = `{"id": "re_1", "amount": 9999, "currency": "usd", "status": "succeeded", "payment_intent": "pi_1", "metadata": %s}`
)

func TestWebhooksArePublished(t *testing.T) {
	t.Parallel()

	for name, c := range map[string]struct{ event, report string }{
		"captured": {
			stripeEvent("evt_1", "payment_intent.succeeded", succeeded, ""), "order/2 captured pi_1  99.99 USD ",
		},
		"declined": {
			stripeEvent("evt_1", "payment_intent.payment_failed", failed, ""), "order/2 declined   500 JPY Your card was declined. (lost_card)",
		},
		"refunded": {
			stripeEvent("evt_1", "refund.created", fmt.Sprintf(refunded, `{"source": "millrace", "order_id": "order"}`), ""),
			"order/0 refunded pi_1 re_1 99.99 USD ",
		},
		"refunded after pending": {
			stripeEvent("evt_1", "refund.updated", fmt.Sprintf(refunded, `{"source": "millrace", "order_id": "order"}`), `, "previous_attributes": {"status": "pending"}`),
			"order/0 refunded pi_1 re_1 99.99 USD ",
		},
		"a manual refund of our charge": {
			stripeEvent("evt_1", "refund.created", strings.Replace(fmt.Sprintf(refunded, `{}`), "pi_1", "pi_known", 1), ""),
			"known/3 refunded pi_known re_1 99.99 USD ",
		},
		"a failed refund": {
			stripeEvent("evt_1", "refund.failed", strings.Replace(fmt.Sprintf(refunded, `{"source": "millrace", "order_id": "order"}`), `"succeeded"`, `"failed", "failure_reason": "lost_or_stolen_card"`, 1), ""),
			"order/0 refund_failed pi_1 re_1 99.99 USD failed: lost_or_stolen_card",
		},
		"a refund that failed after pending": {
			stripeEvent("evt_1", "charge.refund.updated", strings.Replace(fmt.Sprintf(refunded, `{}`), `"succeeded", "payment_intent": "pi_1"`, `"canceled", "payment_intent": "pi_known"`, 1),
				`, "previous_attributes": {"status": "pending"}`),
			"known/3 refund_failed pi_known re_1 99.99 USD canceled",
		},
		"cancelled": {
			stripeEvent("evt_1", "payment_intent.canceled", strings.NewReplacer("pi_1", "pi_known", "succeeded", "canceled").Replace(succeeded), ""),
			"known/3 declined   99.99 USD the payment was cancelled at the provider",
		},
		"disputed": {
			stripeEvent("evt_1", "charge.dispute.created", `{"id": "dp_1", "amount": 9999, "currency": "usd", "reason": "fraudulent", "status": "needs_response", "payment_intent": "pi_known", "metadata": {}}`, ""),
			"known/3 disputed pi_known  99.99 USD fraudulent (dp_1)",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			r := newReceiver(t)
			r.accept(c.event, "published")

			got := ""
			for _, p := range r.published() {
				got += fmt.Sprintf("%s/%d %s %s %s %s %s %s", p.OrderID, p.Attempt, p.Outcome, p.TransactionID, p.RefundID, p.Amount, p.Currency, p.Reason)
			}

			if got != c.report {
				t.Errorf("published %q, expected %q", got, c.report)
			}

			id := pgtest.Value[string](t, r.pool, `SELECT message_id::text FROM outbox`)
			if id != event.ForeignID("stripe", "evt_1").String() {
				t.Errorf("the message has the id %s", id)
			}
		})
	}
}

func TestWebhooksThatSettleNothingOfOursAreNotPublished(t *testing.T) {
	t.Parallel()

	for name, c := range map[string]struct{ event, outcome string }{
		"a refund with a new description": {
			stripeEvent("evt_1", "refund.updated", fmt.Sprintf(refunded, `{}`), `, "previous_attributes": {"description": "x"}`), "ignored",
		},
		"a superfluous intent that is cancelled": {
			stripeEvent("evt_1", "payment_intent.canceled", strings.Replace(succeeded, "succeeded", "canceled", 1), ""), "foreign",
		},
		"another system's dispute": {
			stripeEvent("evt_1", "charge.dispute.created", `{"id": "dp_1", "amount": 9999, "currency": "usd", "reason": "fraudulent", "payment_intent": "pi_2"}`, ""), "foreign",
		},
		"a payment that is being processed": {
			stripeEvent("evt_1", "payment_intent.processing", strings.Replace(succeeded, "succeeded", "processing", 1), ""), "ignored",
		},
		"a pending refund": {
			stripeEvent("evt_1", "refund.created", strings.Replace(fmt.Sprintf(refunded, `{}`), "succeeded", "pending", 1), ""), "ignored",
		},
		"another system's payment": {
			stripeEvent("evt_1", "payment_intent.succeeded", strings.Replace(succeeded, "millrace", "woocommerce", 1), ""), "foreign",
		},
		"an unknown type": {stripeEvent("evt_1", "customer.created", `{"id": "cus_1"}`, ""), "ignored"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			r := newReceiver(t)
			r.accept(c.event, c.outcome)

			if got := r.published(); len(got) > 0 {
				t.Errorf("published %+v", got)
			}
		})
	}
}

func TestUnverifiedWebhooksAreRefused(t *testing.T) {
	t.Parallel()

	good := stripeEvent("evt_1", "payment_intent.succeeded", succeeded, "")
	now := time.Now()
	r := newReceiver(t)

	for name, c := range map[string]struct{ got, want int }{
		"another secret":   {r.post(good, "whsec_other", now), http.StatusBadRequest},
		"no signature":     {r.send(good, ""), http.StatusBadRequest},
		"nonsense":         {r.send(good, "t=x,v1=y"), http.StatusBadRequest},
		"an old signature": {r.post(good, "whsec_new", now.Add(-6*time.Minute)), http.StatusBadRequest},
		"not JSON":         {r.post("{", "whsec_new", now), http.StatusBadRequest},
		"no id":            {r.post(`{"type": "payment_intent.succeeded"}`, "whsec_new", now), http.StatusBadRequest},
		"no object":        {r.post(stripeEvent("evt_2", "payment_intent.succeeded", `[]`, ""), "whsec_new", now), http.StatusBadRequest},
		"NUL in its id":    {r.post(strings.Replace(stripeEvent("evt_3", "payment_intent.succeeded", succeeded, ""), `"evt_3"`, `"evt\u0000"`, 1), "whsec_new", now), http.StatusBadRequest},
		"NUL in an intent": {r.post(stripeEvent("evt_3", "payment_intent.succeeded", strings.Replace(succeeded, `"pi_1"`, `"pi\u0000"`, 1), ""), "whsec_new", now), http.StatusBadRequest},
		"NUL in an order":  {r.post(stripeEvent("evt_4", "payment_intent.succeeded", strings.Replace(succeeded, `"order"`, `"o\u0000"`, 1), ""), "whsec_new", now), http.StatusBadRequest},
		"oversized":        {r.post(strings.Repeat(" ", 256<<10)+good, "whsec_new", now), http.StatusRequestEntityTooLarge},
		"modified":         {r.send(strings.Replace(good, "9999", "9998", 2), webhook.GenerateTestSignedPayload(&webhook.UnsignedPayload{Payload: []byte(good), Secret: "whsec_new"}).Header), http.StatusBadRequest},
	} {
		if c.got != c.want {
			t.Errorf("%s: answered %d, expected %d", name, c.got, c.want)
		}
	}

	if reports := r.published(); len(reports) != 0 || r.counted("refused") != 12 {
		t.Errorf("published %+v, refused %v", reports, r.counted("refused"))
	}

	// During a rotation both secrets are accepted.
	for i, secret := range []string{"whsec_new", "whsec_old"} {
		if status := r.post(stripeEvent(fmt.Sprintf("evt_%d", 10+i), "payment_intent.succeeded", succeeded, ""), secret, now); status != http.StatusOK {
			t.Errorf("%s: answered %d", secret, status)
		}
	}
}

func TestARepeatedWebhookIsPublishedOnce(t *testing.T) {
	t.Parallel()

	r := newReceiver(t)
	body := stripeEvent("evt_1", "payment_intent.succeeded", succeeded, "")

	if _, err := r.pool.Exec(t.Context(), `INSERT INTO provider_events VALUES ('stripe', 'evt_0', now() - interval '31 days')`); err != nil {
		t.Fatal(err)
	}

	statuses := make(chan int)

	for range 5 { // concurrently
		go func() { statuses <- r.post(body, "whsec_new", time.Now()) }()
	}

	for range 5 {
		if status := <-statuses; status != http.StatusOK {
			t.Errorf("answered %d", status)
		}
	}

	if reports := r.published(); len(reports) != 1 {
		t.Errorf("published %+v", reports)
	}

	// The relay has published the message.
	if _, err := r.pool.Exec(t.Context(), `DELETE FROM outbox`); err != nil {
		t.Fatal(err)
	}

	if status := r.post(body, "whsec_new", time.Now()); status != http.StatusOK || len(r.published()) != 0 || r.counted("duplicate") != 5 {
		t.Errorf("answered %d, published %+v, duplicates %v", status, r.published(), r.counted("duplicate"))
	}

	if n := pgtest.Value[int](t, r.pool, `SELECT count(*) FROM provider_events`); n != 1 {
		t.Errorf("%d events are stored, expected the expired one to be deleted", n)
	}
}

func TestAWebhookIsNotAcknowledgedBeforeTheCommit(t *testing.T) {
	t.Parallel()

	r := newReceiver(t)
	body := stripeEvent("evt_1", "payment_intent.succeeded", succeeded, "")

	if _, err := r.pool.Exec(t.Context(), `ALTER TABLE outbox RENAME TO outbox_away`); err != nil {
		t.Fatal(err)
	}

	if status := r.post(body, "whsec_new", time.Now()); status != http.StatusServiceUnavailable {
		t.Errorf("answered %d", status)
	}

	if _, err := r.pool.Exec(t.Context(), `ALTER TABLE outbox_away RENAME TO outbox`); err != nil {
		t.Fatal(err)
	}

	if status := r.post(body, "whsec_new", time.Now()); status != http.StatusOK || len(r.published()) != 1 {
		t.Errorf("answered %d, published %+v", status, r.published())
	}
}

func TestWebhooksNeedASecret(t *testing.T) {
	t.Parallel()

	if payment.NewWebhook(payment.DefaultConfig(), nil, nil, pgtest.Logger(t), prometheus.NewRegistry()).Enabled() {
		t.Error("webhooks are served without a secret")
	}
}

func TestStateComparesBothRecords(t *testing.T) {
	t.Parallel()

	for name, cfg := range map[string]payment.Config{
		"simulated": simulatedConfig(),
		"stripe":    stripeConfig(paymenttest.NewServer(t).URL),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			pool := pgtest.New(t)
			r := records{t: t, pool: pool, gateway: newGateway(t, cfg, pool)}

			if _, err := payment.State(t.Context(), pool, r.gateway, "nobody"); err == nil || err.Error() != "there is no payment of order nobody" {
				t.Errorf("got %v", err)
			}

			r.write("agrees", "captured", "99.99", r.charge("agrees"), "")

			if s := r.state("agrees"); len(s.Differences) != 0 || len(s.Recorded) != 1 || len(s.Ledger) != 1 {
				t.Errorf("got %+v", s)
			}

			r.charge("unrecorded")
			r.write("uncaptured", "captured", "99.99", "t_none", "")
			r.write("amount", "captured", "1", r.charge("amount"), "")
			r.write("refund", "refunded", "99.99", r.charge("refund"), "re")
			given := r.charge("refunded elsewhere")
			r.write("refunded elsewhere", "captured", "99.99", given, "")

			if _, err := r.gateway.Refund(t.Context(), refundOf("refunded elsewhere", payment.Outcome{TransactionID: given})); err != nil {
				t.Fatal(err)
			}

			for order, says := range map[string]string{
				"unrecorded": "which is not recorded", "uncaptured": "has not captured it", "amount": "is recorded with 1 USD",
				"refund": "has refunded 0 of 99.99 USD", "refunded elsewhere": "no refund is recorded",
			} {
				if s := r.state(order); len(s.Differences) != 1 || !strings.Contains(s.Differences[0], says) {
					t.Errorf("%s: got %q", order, s.Differences)
				}
			}
		})
	}
}

// records holds the two records of payments: the provider's and Millrace's.
type records struct {
	t       *testing.T
	pool    *pgxpool.Pool
	gateway payment.Gateway
}

// charge adds a charge to the provider's record and returns the transaction.
func (r records) charge(order string) string {
	r.t.Helper()

	outcome, err := r.gateway.Charge(r.t.Context(), chargeFor(order))
	if err != nil {
		r.t.Fatal(err)
	}

	return outcome.TransactionID
}

// write adds a payment to Millrace's record.
func (r records) write(order, status, amount, transaction, refund string) {
	r.t.Helper()

	_, err := r.pool.Exec(r.t.Context(), `
		INSERT INTO payments (order_id, status, amount, currency, transaction_id, refund_id, refunded_at)
		VALUES ($1, $2, $3::text::numeric, 'USD', $4, NULLIF($5, ''), CASE WHEN $5 <> '' THEN now() END)`, order, status, amount, transaction, refund)
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r records) state(order string) payment.Statement {
	r.t.Helper()

	s, err := payment.State(r.t.Context(), r.pool, r.gateway, order)
	if err != nil {
		r.t.Fatal(err)
	}

	return s
}
