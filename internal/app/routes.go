package app

import (
	"github.com/millrace/millrace/internal/account"
	"github.com/millrace/millrace/internal/broker"
	"github.com/millrace/millrace/internal/consumer"
	"github.com/millrace/millrace/internal/event"
	"github.com/millrace/millrace/internal/fulfilment"
	"github.com/millrace/millrace/internal/notification"
	"github.com/millrace/millrace/internal/payment"
)

// route is the whole routing table. Names of consumers are for ever: inbox
// rows and consumer groups carry them.
func route(r *consumer.Router, d Domains) {
	consumer.OnBatch(r, "fulfilment.place", d.Fulfilment.Place)
	consumer.OnEffect(r, "fulfilment.charge", consumer.Effect[fulfilment.PaymentRequested, payment.Outcome]{
		Admit: d.Fulfilment.Admit, Perform: d.Fulfilment.Charge, Record: d.Fulfilment.Settle,
		Needs: func(event.Event[fulfilment.PaymentRequested]) string { return payment.Dependency },
	})
	consumer.OnBatch(r, "fulfilment.complete", d.Fulfilment.Complete)

	consumer.OnBatch(r, "account.create", d.Accounts.Create)
	consumer.OnBatch(r, "account.update", d.Accounts.Update)
	consumer.OnBatch(r, "account.legacy", d.Accounts.Legacy)
	consumer.OnEffect(r, "notification.send", consumer.Effect[notification.Requested, notification.Delivery]{
		Admit: d.Notifications.Admit, Needs: d.Notifications.Needs, Perform: d.Notifications.Send, Record: d.Notifications.Record,
	})
	consumer.OnBatch(r, "analytics.track", d.Analytics.Track)
}

// published lists the topics that are published and that nobody consumes here.
var published = []string{fulfilment.TopicOrderRejected, account.TopicProfileUpdated, payment.TopicReported}

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
