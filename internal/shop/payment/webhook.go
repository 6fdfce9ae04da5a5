package payment

import (
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

// WebhookPattern is where Stripe's webhooks come in.
const WebhookPattern = "POST /webhooks/stripe"

// Bounds of a webhook.
const (
	maxWebhook     = 256 << 10 // bytes; Stripe's events are a few thousand
	webhookTimeout = 8 * time.Second
	// forgetAfter is longer than a provider repeats an event, by itself or
	// because somebody asks it to.
	forgetAfter = 30 * 24 * time.Hour
)

// Webhook takes what Stripe tells by itself and makes it messages on
// payments.reported. It answers 2xx once the message is committed to the
// outbox, and for what is none of ours; anything else makes Stripe try again.
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
			Help: "Webhooks of payment providers by what became of them: published, duplicate, ignored, foreign, refused or failed.",
		}, []string{"provider", "type", "outcome"}),
	}
}

// Enabled reports whether a secret is configured. Without one nothing can be
// verified, so nothing may be served.
func (h *Webhook) Enabled() bool { return len(h.secrets) > 0 }

// fate is what became of a webhook.
type fate string

const (
	fatePublished fate = "published"
	fateDuplicate fate = "duplicate"
	fateIgnored   fate = "ignored" // of a type that says nothing here
	fateForeign   fate = "foreign" // about a payment that Millrace did not make
	fateRefused   fate = "refused" // not verified, too large or not readable
	fateFailed    fate = "failed"  // Postgres: it comes again
)

// ServeHTTP implements http.Handler.
func (h *Webhook) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxWebhook))
	if err != nil {
		status := http.StatusBadRequest
		if _, large := errors.AsType[*http.MaxBytesError](err); large {
			status = http.StatusRequestEntityTooLarge
		}

		h.answer(w, "", fateRefused, status, err)

		return
	}

	e, err := h.verify(body, r.Header.Get("Stripe-Signature"))
	if err != nil {
		h.answer(w, "", fateRefused, http.StatusBadRequest, err)

		return
	}

	ctx, cancel := context.WithTimeout(r.Context(), webhookTimeout)
	defer cancel()

	became, err := h.take(ctx, e)

	switch {
	case err != nil && became == fateRefused:
		h.answer(w, e.Type, became, http.StatusBadRequest, err)
	case err != nil:
		h.answer(w, e.Type, fateFailed, http.StatusServiceUnavailable, err)
	default:
		h.answer(w, e.Type, became, http.StatusOK, nil)
	}
}

// verify accepts a signature by any of the secrets. The version of the API may
// differ from the library's: what is read here is the same in all of them.
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
	case e.ID == "" || e.Data == nil:
		return e, errors.New("the webhook has no id or no data")
	default:
		return e, nil
	}
}

// take appends what an event says to the outbox.
func (h *Webhook) take(ctx context.Context, e stripe.Event) (fate, error) {
	report, intent, err := reportOf(e)

	switch {
	case err != nil:
		return fateRefused, err
	case report == nil:
		return fateIgnored, nil
	}

	became := fatePublished

	err = postgres.InTx(ctx, h.pool, func(tx pgx.Tx) error {
		// A refund that a person made knows its intent, and the intent its order.
		if report.OrderID == "" {
			err := tx.QueryRow(ctx, `SELECT order_id, attempt FROM stripe_intents WHERE intent_id = $1`, intent).
				Scan(&report.OrderID, &report.Attempt)
			if errors.Is(err, pgx.ErrNoRows) {
				became = fateForeign

				return nil
			}

			if err != nil {
				return fmt.Errorf("looking up the order of %s: %w", intent, err)
			}
		}

		fresh, err := claimEvent(ctx, tx, gatewayStripe, e.ID)
		if err != nil {
			return err
		}

		if !fresh {
			became = fateDuplicate

			return nil
		}

		// The inbox knows this id too, should the claim be forgotten one day.
		id := event.ForeignID(gatewayStripe, e.ID)

		return h.append(ctx, tx, []event.Outgoing{{Meta: event.Meta{ID: id, Correlation: id}, Payload: *report}})
	})

	return became, err
}

// claimEvent reports whether an event is seen for the first time. It waits for
// another transaction that claims the same one. With each claim it forgets a
// few that are past their time, so the table does not grow for ever.
func claimEvent(ctx context.Context, tx pgx.Tx, provider, id string) (bool, error) {
	tag, err := tx.Exec(ctx, `INSERT INTO provider_events (provider, event_id) VALUES ($1, $2) ON CONFLICT DO NOTHING`, provider, id)
	if err != nil {
		return false, fmt.Errorf("claiming a provider's event: %w", err)
	}

	if tag.RowsAffected() == 0 {
		return false, nil
	}

	_, err = tx.Exec(ctx, `
		DELETE FROM provider_events WHERE (provider, event_id) IN (
			SELECT provider, event_id FROM provider_events WHERE received_at < now() - $1::interval
			ORDER BY received_at LIMIT 10 FOR UPDATE SKIP LOCKED)`, forgetAfter)
	if err != nil {
		return false, fmt.Errorf("forgetting old events of providers: %w", err)
	}

	return true, nil
}

// reportOf translates an event; nil if it says nothing that matters here. The
// order id is empty when the event does not know it.
func reportOf(e stripe.Event) (report *Reported, intent string, err error) {
	switch e.Type {
	case stripe.EventTypePaymentIntentSucceeded, stripe.EventTypePaymentIntentPaymentFailed:
		var p stripe.PaymentIntent
		if err := json.Unmarshal(e.Data.Raw, &p); err != nil {
			return nil, "", fmt.Errorf("reading %s: %w", e.Type, err)
		}

		return reportOfIntent(e.Type, p), p.ID, nil
	case stripe.EventTypeRefundCreated, stripe.EventTypeRefundUpdated:
		var r stripe.Refund
		if err := json.Unmarshal(e.Data.Raw, &r); err != nil {
			return nil, "", fmt.Errorf("reading %s: %w", e.Type, err)
		}

		_, changed := e.Data.PreviousAttributes["status"]
		if r.Status != stripe.RefundStatusSucceeded || r.PaymentIntent == nil || (e.Type == stripe.EventTypeRefundUpdated && !changed) {
			return nil, "", nil
		}

		report := about(r.Metadata, r.Amount, r.Currency)
		report.Outcome, report.TransactionID, report.RefundID = ReportRefunded, r.PaymentIntent.ID, r.ID

		return report, r.PaymentIntent.ID, nil
	default:
		return nil, "", nil
	}
}

func reportOfIntent(kind stripe.EventType, p stripe.PaymentIntent) *Reported {
	if kind == stripe.EventTypePaymentIntentSucceeded {
		report := about(p.Metadata, p.AmountReceived, p.Currency)
		report.Outcome, report.TransactionID = ReportCaptured, p.ID

		return report
	}

	report := about(p.Metadata, p.Amount, p.Currency)
	report.Outcome, report.Reason = ReportDeclined, "the payment failed"

	if p.LastPaymentError != nil {
		report.Reason = declineOf(p.LastPaymentError)
	}

	return report
}

// about begins a report. The order is read from metadata that Millrace wrote.
func about(metadata map[string]string, units int64, currency stripe.Currency) *Reported {
	amount, code := amountOf(units, string(currency))
	report := &Reported{Amount: &amount, Currency: code}

	if metadata[metaSource] == event.Source {
		report.OrderID = metadata[metaOrder]
		report.Attempt, _ = strconv.Atoi(metadata[metaAttempt]) // refunds have none
	}

	return report
}

// answer counts, and tells the log what went wrong; never what came.
func (h *Webhook) answer(w http.ResponseWriter, kind stripe.EventType, became fate, status int, err error) {
	label := "other" // there are hundreds of types

	switch kind {
	case stripe.EventTypePaymentIntentSucceeded, stripe.EventTypePaymentIntentPaymentFailed,
		stripe.EventTypeRefundCreated, stripe.EventTypeRefundUpdated:
		label = string(kind)
	}

	h.received.WithLabelValues(gatewayStripe, label, string(became)).Inc()

	if err != nil {
		h.logger.Warn("webhook not taken", slog.String("provider", gatewayStripe), slog.String("outcome", string(became)), slog.Any("error", err))
	}

	// The reason stays here: whoever cannot sign need not learn why.
	http.Error(w, http.StatusText(status), status)
}
