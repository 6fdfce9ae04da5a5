package broker

import "net/url"

// Place says where a topic is, for those who want to send or read its messages.
type Place struct {
	// Kind is the kind of the broker.
	Kind string
	// KafkaTopic and KafkaGroup are the topic and the consumer group on Kafka.
	KafkaTopic, KafkaGroup string
	// Exchange and Queue are those on RabbitMQ. The routing key is that of the queue.
	Exchange, Queue string
}

// PlaceOf returns where a topic is. For the embedded broker, it has the names that the
// topic would have on others.
func (s *Set) PlaceOf(topic string) Place {
	kind := s.Of(topic).Kind()

	name := s.cfg.names(kind).of(topic)

	return Place{
		Kind: kind, KafkaTopic: s.cfg.Kafka.Prefix + name, KafkaGroup: s.cfg.Kafka.Group + "." + name, Exchange: s.cfg.RabbitMQ.Exchange, Queue: name,
	}
}

// Server is the address of a broker.
type Server struct {
	Name, Host string
	// Protocol is one of AsyncAPI: kafka, kafka-secure, amqp or amqps.
	Protocol string
}

// Servers returns the addresses of the brokers in use, without log-ins.
func (s *Set) Servers() (list []Server) {
	for _, kind := range s.cfg.kinds() {
		switch kind {
		case Kafka:
			protocol := "kafka"
			if s.cfg.Kafka.TLS {
				protocol = "kafka-secure"
			}

			for _, host := range s.cfg.Kafka.Brokers {
				list = append(list, Server{Name: Kafka, Host: host, Protocol: protocol})
			}
		case RabbitMQ:
			if u, err := url.Parse(string(s.cfg.RabbitMQ.URL)); err == nil {
				list = append(list, Server{Name: RabbitMQ, Host: u.Host, Protocol: u.Scheme})
			}
		}
	}

	return list
}
