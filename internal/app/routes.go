package app

import (
	"context"
	"errors"

	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/consumer"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/shop/account"
	"github.com/millracehq/millrace/internal/shop/analytics"
	"github.com/millracehq/millrace/internal/shop/fulfilment"
	"github.com/millracehq/millrace/internal/shop/inventory"
	"github.com/millracehq/millrace/internal/shop/notification"
	"github.com/millracehq/millrace/internal/shop/order"
	"github.com/millracehq/millrace/internal/shop/payment"
	"github.com/millracehq/millrace/internal/shop/user"
)

// Domains holds the services and processes of the shop.
type Domains struct {
	Orders        *order.Service
	Inventory     *inventory.Service
	Fulfilment    *fulfilment.Process
	Expiry        *fulfilment.Sweeper
	Users         *user.Service
	Accounts      *account.Accounts
	Notifications *notification.Service
	Analytics     *analytics.Service
	Gateway       payment.Gateway
	Webhook       *payment.Webhook
}

// route defines the whole routing table: the consumers with their handlers and
// published payloads, and what erasing a person clears. The inbox identifies a
// consumer by its name, so a name must never change.
func route(r *consumer.Router, d Domains) {
	consumer.OnBatch(r, "fulfilment.place", d.Fulfilment.Place, fulfilment.PaymentRequested{}, fulfilment.OrderRejected{})
	consumer.OnEffect(r, "fulfilment.charge", consumer.Effect[fulfilment.PaymentRequested, payment.Outcome]{
		Admit: d.Fulfilment.Admit, Perform: d.Fulfilment.Charge, Record: d.Fulfilment.Settle, Late: d.Fulfilment.Settle,
		Needs: gateway[fulfilment.PaymentRequested],
	}, fulfilment.OrderCompleted{}, fulfilment.OrderRejected{}, fulfilment.RefundRequested{})
	consumer.OnBatch(r, "fulfilment.complete", d.Fulfilment.Complete)
	consumer.OnEffect(r, "fulfilment.cancel", consumer.Effect[fulfilment.CancelRequested, payment.Outcome]{
		Admit: d.Fulfilment.AdmitCancel, Perform: d.Fulfilment.FindForCancel, Record: d.Fulfilment.Cancel,
		Needs: gateway[fulfilment.CancelRequested],
	}, fulfilment.OrderCancelled{}, fulfilment.CancelRefused{}, fulfilment.RefundRequested{})
	consumer.OnEffect(r, "fulfilment.expire", consumer.Effect[fulfilment.ExpiryDue, payment.Outcome]{
		Admit: d.Fulfilment.AdmitExpiry, Perform: d.Fulfilment.FindForExpiry, Record: d.Fulfilment.Expire,
		Needs: gateway[fulfilment.ExpiryDue],
	}, fulfilment.OrderExpired{}, fulfilment.OrderCompleted{}, fulfilment.RefundRequested{}, fulfilment.ExpiryDue{})
	consumer.OnEffect(r, "fulfilment.refund", consumer.Effect[fulfilment.RefundRequested, string]{
		Admit: d.Fulfilment.AdmitRefund, Perform: d.Fulfilment.Refund, Record: d.Fulfilment.RecordRefund,
		Needs: gateway[fulfilment.RefundRequested],
	}, fulfilment.PaymentRefunded{}, fulfilment.OrderCancelled{}, fulfilment.RefundRequested{})
	consumer.OnBatch(r, "fulfilment.report", d.Fulfilment.Report, fulfilment.OrderCompleted{}, fulfilment.OrderRejected{},
		fulfilment.OrderCancelled{}, fulfilment.RefundRequested{}, fulfilment.PaymentRefunded{}, fulfilment.RefundFailed{})
	consumer.OnBatch(r, "inventory.restock", d.Inventory.Restock)

	consumer.OnBatch(r, "account.create", d.Accounts.Create, notification.Requested{})
	consumer.OnBatch(r, "account.update", d.Accounts.Update, account.ProfileUpdated{}, notification.Requested{})
	consumer.OnBatch(r, "account.legacy", d.Accounts.Legacy, account.ProfileUpdated{}, notification.Requested{})
	consumer.OnBatch(r, "notification.route", d.Notifications.Route, notification.EmailDue{}, notification.WebhookDue{}, notification.LogDue{})
	consumer.OnEffect(r, "notification.email", consumer.Effect[notification.EmailDue, string]{
		Admit: d.Notifications.AdmitEmail, Needs: d.Notifications.NeedsMailServer,
		Perform: d.Notifications.SendEmail, Record: notification.Record[notification.EmailDue], Independent: true,
	})
	r.Defaults(consumer.TopicConfig{
		Topic: notification.TopicWebhook, ParkInterval: new(notification.WebhookPause),
		ParkMaxInterval: new(notification.WebhookMaxPause), ParkAttempts: new(notification.WebhookAttempts),
	})
	consumer.OnEffect(r, webhookConsumer, consumer.Effect[notification.WebhookDue, string]{
		Needs: d.Notifications.NeedsReceiver, Perform: postWebhook(r, d.Notifications), Record: notification.Record[notification.WebhookDue],
		Independent: true,
	})
	consumer.OnEffect(r, "notification.log", consumer.Effect[notification.LogDue, string]{
		Perform: d.Notifications.WriteLog, Record: notification.Record[notification.LogDue], Independent: true,
	})
	consumer.OnBatch(r, "analytics.track", d.Analytics.Track)

	r.OnErase("users", d.Users.Erase)
	r.OnErase("misses", d.Users.ForgetMisses)
	r.OnErase("notifications", d.Notifications.Forget)
	r.OnErase("analytics", d.Analytics.Forget)
	r.OnSearch(d.Users.Marks)
}

const webhookConsumer = "notification.webhook"

// postWebhook posts a webhook. If the receiver no longer wants webhooks, postWebhook
// pauses the consumer, so that later webhooks are kept, not posted, until an operator
// resumes it.
func postWebhook(r *consumer.Router, s *notification.Service) func(context.Context, event.Event[notification.WebhookDue]) (string, error) {
	return func(ctx context.Context, e event.Event[notification.WebhookDue]) (string, error) {
		answer, err := s.PostWebhook(ctx, e)
		if !errors.Is(err, notification.ErrGone) {
			return answer, err
		}

		if _, pauseErr := r.Pause(ctx, webhookConsumer, 0, activity.Actor{Who: activity.Service, Why: notification.ErrGone.Error()}); pauseErr != nil {
			return "", pauseErr // posts it again, and then pauses
		}

		return "", err
	}
}

// gateway returns the dependency that charges, refunds and lookups need.
func gateway[P event.Payload](event.Event[P]) string { return payment.Dependency }
