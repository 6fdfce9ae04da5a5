package payment

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/stripe/stripe-go/v82"
	"github.com/stripe/stripe-go/v82/webhook"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// WebhookPattern is the route of Stripe's webhooks.
const WebhookPattern = "POST /webhooks/stripe"

// Limits on a webhook.
const (
	maxWebhook     = 256 << 10 // bytes; Stripe's events have a few thousand
	webhookTimeout = 8 * time.Second
	// claimRetention exceeds the time within which a provider may resend an event,
	// automatically or on request.
	claimRetention = 30 * 24 * time.Hour
)

// Webhook turns Stripe's webhooks into messages on payments.reported. It
// answers 2xx once the message is committed to the outbox, and for events that
// do not concern Millrace. Any other answer makes Stripe try again.
type Webhook struct {
	secrets   []string
	tolerance time.Duration
	pool      *pgxpool.Pool
	append    event.Append
	logger    *slog.Logger
	received  *prometheus.CounterVec
}

// NewWebhook returns the handler; see Enabled.
func NewWebhook(cfg Config, pool *pgxpool.Pool, appendEvents event.Append, logger *slog.Logger, registry *prometheus.Registry) *Webhook {
	return &Webhook{
		secrets:   cfg.Stripe.webhookSecrets(),
		tolerance: cfg.Stripe.WebhookTolerance,
		pool:      pool,
		append:    appendEvents,
		logger:    logger,
		received: promauto.With(registry).NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_provider_webhooks_total",
			Help: "Payment provider webhooks by outcome: published, duplicate, ignored, foreign, refused or failed.",
		}, []string{"provider", "type", "outcome"}),
	}
}

// Enabled reports whether a secret is configured. Without one, webhooks cannot be
// verified and must not be served.
func (h *Webhook) Enabled() bool { return len(h.secrets) > 0 }

// webhookOutcome is the result of a webhook, as counted by the metric.
type webhookOutcome string

const (
	webhookPublished webhookOutcome = "published"
	webhookDuplicate webhookOutcome = "duplicate"
	webhookIgnored   webhookOutcome = "ignored" // of a type that Millrace ignores
	webhookForeign   webhookOutcome = "foreign" // about a payment that Millrace did not make
	webhookRefused   webhookOutcome = "refused" // not verified, too large or unreadable
	webhookFailed    webhookOutcome = "failed"  // Postgres failed; Stripe tries again
)

// ServeHTTP implements http.Handler. It counts the webhook and logs an error
// without the body.
func (h *Webhook) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	kind, outcome, status, err := h.receive(w, r)

	label := "other" // Stripe has hundreds of types
	if translate[kind] != nil {
		label = string(kind)
	}

	h.received.WithLabelValues(gatewayStripe, label, string(outcome)).Inc()

	if err != nil {
		h.logger.Warn("webhook not accepted", slog.String("provider", gatewayStripe), slog.String("outcome", string(outcome)), slog.Any("error", err))
	}

	// The body gives no reason: a caller that cannot sign need not know why.
	http.Error(w, http.StatusText(status), status)
}

// receive verifies and publishes a webhook.
func (h *Webhook) receive(w http.ResponseWriter, r *http.Request) (kind stripe.EventType, outcome webhookOutcome, status int, err error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxWebhook))
	if _, large := errors.AsType[*http.MaxBytesError](err); large {
		return "", webhookRefused, http.StatusRequestEntityTooLarge, err
	}

	if err != nil {
		return "", webhookRefused, http.StatusBadRequest, err
	}

	e, err := h.verify(body, r.Header.Get("Stripe-Signature"))
	if err != nil {
		return "", webhookRefused, http.StatusBadRequest, err
	}

	report, relevant, err := reportOf(e)

	switch {
	case err != nil:
		return e.Type, webhookRefused, http.StatusBadRequest, err
	case !relevant:
		return e.Type, webhookIgnored, http.StatusOK, nil
	}

	ctx, cancel := context.WithTimeout(r.Context(), webhookTimeout)
	defer cancel()

	if outcome, err = h.publish(ctx, e.ID, report); err != nil {
		return e.Type, webhookFailed, http.StatusServiceUnavailable, err
	}

	return e.Type, outcome, http.StatusOK, nil
}

// verify accepts a signature by any of the secrets. The event's API version may
// differ from the library's: the fields read here are the same in all versions.
func (h *Webhook) verify(body []byte, signature string) (e stripe.Event, err error) {
	for _, secret := range h.secrets {
		e, err = webhook.ConstructEventWithOptions(body, signature, secret, webhook.ConstructEventOptions{
			Tolerance: h.tolerance, IgnoreAPIVersionMismatch: true,
		})
		if err == nil {
			break
		}
	}

	switch {
	case err != nil:
		return e, fmt.Errorf("verifying webhook: %w", err)
	case e.Data == nil:
		return e, errors.New("the webhook has no data")
	default:
		return e, event.CheckID("id", e.ID)
	}
}

// publish appends a report to the outbox, once per event.
func (h *Webhook) publish(ctx context.Context, eventID string, report report) (outcome webhookOutcome, err error) {
	outcome = webhookPublished

	err = postgres.InTx(ctx, h.pool, func(tx pgx.Tx) error {
		// A manual refund or a dispute names only its intent, so find the order by
		// intent.
		if report.OrderID == "" {
			err := tx.QueryRow(ctx, `SELECT order_id, attempt FROM stripe_intents WHERE intent_id = $1`, report.intent).
				Scan(&report.OrderID, &report.Attempt)
			if errors.Is(err, pgx.ErrNoRows) {
				outcome = webhookForeign

				return nil
			}

			if err != nil {
				return fmt.Errorf("looking up the order of %s: %w", report.intent, err)
			}
		}

		fresh, err := claimEvent(ctx, tx, eventID)
		if err != nil {
			return err
		}

		if !fresh {
			outcome = webhookDuplicate

			return nil
		}

		// The id depends on the event alone, so the inbox recognises a duplicate
		// even after the claim has been deleted.
		id := event.ForeignID(gatewayStripe, eventID)

		return h.append(ctx, tx, []event.Outgoing{{Meta: event.Meta{ID: id, Correlation: id}, Payload: report.Reported}})
	})

	return outcome, err
}

// claimEvent reports whether an event is new. It waits for another transaction
// that claims the same event. Each claim also deletes a few expired ones, so
// the table stays small.
func claimEvent(ctx context.Context, tx pgx.Tx, id string) (fresh bool, err error) {
	tag, err := tx.Exec(ctx, `
		WITH expired AS (
			DELETE FROM provider_events WHERE (provider, event_id) IN (
				SELECT provider, event_id FROM provider_events WHERE received_at < now() - $3::interval
				ORDER BY received_at LIMIT 10 FOR UPDATE SKIP LOCKED)
		)
		INSERT INTO provider_events (provider, event_id) VALUES ($1, $2) ON CONFLICT DO NOTHING`, gatewayStripe, id, claimRetention)
	if err != nil {
		return false, fmt.Errorf("claiming a provider event: %w", err)
	}

	return tag.RowsAffected() > 0, nil
}

// report is a message with the intent that it is about.
type report struct {
	Reported

	intent string
}

// translate holds a function for each type of event that concerns Millrace. The function
// returns false if an event reports no outcome.
var translate = map[stripe.EventType]func(data *stripe.EventData) (r report, relevant bool, err error){
	stripe.EventTypePaymentIntentSucceeded:     reportIntent,
	stripe.EventTypePaymentIntentPaymentFailed: reportIntent,
	stripe.EventTypePaymentIntentCanceled:      reportIntent,
	stripe.EventTypeRefundCreated:              reportRefund,
	stripe.EventTypeRefundUpdated:              reportRefund,
	stripe.EventTypeRefundFailed:               reportRefund,
	stripe.EventTypeChargeRefundUpdated:        reportRefund,
	stripe.EventTypeChargeDisputeCreated:       reportDispute,
}

// reportOf translates an event; relevant is false if Millrace ignores it. The
// order id is empty if the event does not contain it.
func reportOf(e stripe.Event) (r report, relevant bool, err error) {
	of := translate[e.Type]
	if of == nil {
		return r, false, nil
	}

	if r, relevant, err = of(e.Data); err == nil && relevant {
		err = errors.Join(event.CheckID("payment_intent", r.intent), event.CheckOptionalID("order_id", r.OrderID))
	}

	if err != nil {
		return r, false, fmt.Errorf("reading %s: %w", e.Type, err)
	}

	return r, relevant, nil
}

func reportIntent(data *stripe.EventData) (r report, relevant bool, err error) {
	var p stripe.PaymentIntent
	if err := json.Unmarshal(data.Raw, &p); err != nil {
		return r, false, err
	}

	outcome, _ := outcomeOf(&p)

	switch {
	case outcome.Captured():
		r = newReport(p.ID, p.Metadata, p.AmountReceived, p.Currency)
		r.Outcome, r.TransactionID = ReportCaptured, p.ID
	case p.Status == stripe.PaymentIntentStatusCanceled:
		r = newReport(p.ID, p.Metadata, p.Amount, p.Currency)
		r.Outcome, r.Reason = ReportDeclined, outcome.Declined
		r.OrderID = "" // an intent that is not recorded was superfluous
	default:
		r = newReport(p.ID, p.Metadata, p.Amount, p.Currency)
		r.Outcome, r.Reason = ReportDeclined, cmp.Or(outcome.Declined, "the payment failed")
	}

	return r, true, nil
}

// reportRefund reports how a refund ended. A pending refund is reported once it ends.
func reportRefund(data *stripe.EventData) (r report, relevant bool, err error) {
	var refund stripe.Refund
	if err := json.Unmarshal(data.Raw, &refund); err != nil {
		return r, false, err
	}

	_, changed := data.PreviousAttributes["status"]
	_, failure := finishedRefund(&refund)

	if refund.PaymentIntent == nil || errors.Is(failure, ErrPending) || data.PreviousAttributes != nil && !changed {
		return r, false, nil
	}

	r = newReport(refund.PaymentIntent.ID, refund.Metadata, refund.Amount, refund.Currency)
	r.Outcome, r.TransactionID, r.RefundID = ReportRefunded, refund.PaymentIntent.ID, refund.ID

	if failure != nil {
		r.Outcome, r.Reason = ReportRefundFailed, refundFailure(&refund)
	}

	return r, true, nil
}

func reportDispute(data *stripe.EventData) (r report, relevant bool, err error) {
	var dispute stripe.Dispute
	if err := json.Unmarshal(data.Raw, &dispute); err != nil || dispute.PaymentIntent == nil {
		return r, false, err
	}

	r = newReport(dispute.PaymentIntent.ID, nil, dispute.Amount, dispute.Currency)
	r.Outcome, r.TransactionID, r.Reason = ReportDisputed, dispute.PaymentIntent.ID, fmt.Sprintf("%s (%s)", dispute.Reason, dispute.ID)

	return r, true, nil
}

// newReport returns a report about the order that Millrace wrote into metadata.
func newReport(intent string, metadata map[string]string, units int64, currency stripe.Currency) report {
	amount, code := amountOf(units, string(currency))
	r := report{Reported: Reported{Amount: &amount, Currency: code}, intent: intent}

	if metadata[metaSource] == event.Source {
		r.OrderID = metadata[metaOrder]
		r.Attempt, _ = strconv.Atoi(metadata[metaAttempt]) // refunds have none
	}

	return r
}
