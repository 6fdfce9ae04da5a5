package app

import (
	"github.com/millracehq/millrace/internal/engine/broker"
	"github.com/millracehq/millrace/internal/engine/consumer"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/shop/account"
	"github.com/millracehq/millrace/internal/shop/fulfilment"
	"github.com/millracehq/millrace/internal/shop/notification"
	"github.com/millracehq/millrace/internal/shop/payment"
)

// route is the whole routing table. Names of consumers are for ever: inbox
// rows and consumer groups carry them.
func route(r *consumer.Router, d Domains) {
	consumer.OnBatch(r, "fulfilment.place", d.Fulfilment.Place)
	consumer.OnEffect(r, "fulfilment.charge", consumer.Effect[fulfilment.PaymentRequested, payment.Outcome]{
		Admit: d.Fulfilment.Admit, Perform: d.Fulfilment.Charge, Record: d.Fulfilment.Settle, Late: d.Fulfilment.Settle,
		Needs: gateway[fulfilment.PaymentRequested],
	})
	consumer.OnBatch(r, "fulfilment.complete", d.Fulfilment.Complete)
	consumer.OnEffect(r, "fulfilment.cancel", consumer.Effect[fulfilment.CancelRequested, payment.Outcome]{
		Admit: d.Fulfilment.AdmitCancel, Perform: d.Fulfilment.FindForCancel, Record: d.Fulfilment.Cancel,
		Needs: gateway[fulfilment.CancelRequested],
	})
	consumer.OnEffect(r, "fulfilment.expire", consumer.Effect[fulfilment.ExpiryDue, payment.Outcome]{
		Admit: d.Fulfilment.AdmitExpiry, Perform: d.Fulfilment.FindForExpiry, Record: d.Fulfilment.Expire,
		Needs: gateway[fulfilment.ExpiryDue],
	})
	consumer.OnEffect(r, "fulfilment.refund", consumer.Effect[fulfilment.RefundRequested, string]{
		Admit: d.Fulfilment.AdmitRefund, Perform: d.Fulfilment.Refund, Record: d.Fulfilment.RecordRefund,
		Needs: gateway[fulfilment.RefundRequested],
	})
	consumer.OnBatch(r, "fulfilment.report", d.Fulfilment.Report)
	consumer.OnBatch(r, "inventory.restock", d.Inventory.Restock)

	consumer.OnBatch(r, "account.create", d.Accounts.Create)
	consumer.OnBatch(r, "account.update", d.Accounts.Update)
	consumer.OnBatch(r, "account.legacy", d.Accounts.Legacy)
	consumer.OnEffect(r, "notification.send", consumer.Effect[notification.Requested, notification.Delivery]{
		Admit: d.Notifications.Admit, Needs: d.Notifications.Needs, Perform: d.Notifications.Send, Record: d.Notifications.Record,
	})
	consumer.OnBatch(r, "analytics.track", d.Analytics.Track)
}

// gateway is what charges, refunds and questions about them need.
func gateway[P event.Payload](event.Event[P]) string { return payment.Dependency }

// published lists the topics that are published and that nobody consumes here.
var published = []string{
	fulfilment.TopicOrderRejected, fulfilment.TopicOrderCancelled, fulfilment.TopicCancelRefused,
	fulfilment.TopicOrderExpired, fulfilment.TopicPaymentRefunded, account.TopicProfileUpdated,
}

// topics is the routing table as the broker needs it.
func topics(r *consumer.Router) []broker.Topic {
	var list []broker.Topic
	for _, route := range r.Routes() {
		list = append(list, broker.Topic{Name: route.Topic, Consumer: route.Consumer})
	}

	for _, name := range published {
		list = append(list, broker.Topic{Name: name})
	}

	return list
}
