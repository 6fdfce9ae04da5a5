package app

import (
	"github.com/millrace/millrace/internal/broker"
	"github.com/millrace/millrace/internal/consumer"
	"github.com/millrace/millrace/internal/fulfilment"
	"github.com/millrace/millrace/internal/payment"
)

// route is the whole routing table. Names of consumers are for ever: inbox
// rows and consumer groups carry them.
func route(r *consumer.Router, process *fulfilment.Process) {
	consumer.OnBatch(r, "fulfilment.place", process.Place)
	consumer.OnEffect(r, "fulfilment.charge", consumer.Effect[fulfilment.PaymentRequested, payment.Outcome]{
		Admit: process.Admit, Perform: process.Charge, Record: process.Settle,
	})
	consumer.OnBatch(r, "fulfilment.complete", process.Complete)
}

// published lists the topics that are published and that nobody consumes here.
var published = []string{fulfilment.TopicOrderRejected}

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
