package kafka

import (
	"errors"
	"fmt"
	"net"

	"github.com/IBM/sarama"

	"github.com/millracehq/millrace/internal/engine/broker/driver"
)

// refusals lists the broker errors that a retry does not resolve, with their scopes.
var refusals = map[sarama.KError]struct {
	scope  driver.Scope
	remedy string
}{
	sarama.ErrMessageSizeTooLarge:    {driver.OneMessage, tooLarge},
	sarama.ErrMessageSetSizeTooLarge: {driver.OneMessage, "raise the topic's segment.bytes, or discard the message"},
	sarama.ErrInvalidRecord:          {driver.OneMessage, "check the message against the topic's settings, such as cleanup.policy"},
	sarama.ErrInvalidTimestamp:       {driver.OneMessage, "correct the topic's message.timestamp limits, or this host's clock"},

	sarama.ErrNotEnoughReplicas:            {driver.OnePartition, replicas},
	sarama.ErrNotEnoughReplicasAfterAppend: {driver.OnePartition, replicas},
	sarama.ErrLeaderNotAvailable:           {driver.OnePartition, "start the brokers that host the topic's partitions"},
	sarama.ErrKafkaStorageError:            {driver.OnePartition, "repair the disk of the broker that leads the partition"},

	sarama.ErrUnknownTopicOrPartition: {driver.OneTopic, missingTopic},
	sarama.ErrTopicAuthorizationFailed: {driver.OneTopic,
		"grant the account WRITE (to publish), READ (to consume) and DESCRIBE on the topic"},
	sarama.ErrInvalidTopic:                {driver.OneTopic, "choose a name of at most 249 letters, digits, '.', '_' and '-'"},
	sarama.ErrPolicyViolation:             {driver.OneTopic, "correct the topic so that it satisfies the cluster's policy"},
	sarama.ErrUnsupportedForMessageFormat: {driver.OneTopic, "raise the topic's message.format.version"},
	sarama.ErrInvalidReplicationFactor:    {driver.OneTopic, "set broker.kafka.replication_factor to at most the number of brokers"},

	sarama.ErrSASLAuthenticationFailed: {driver.Account,
		"correct broker.kafka.user, broker.kafka.password or broker.kafka.sasl_mechanism; with OAUTHBEARER, compare the token's issuer, audience and scope with what the broker expects"},
	sarama.ErrUnsupportedSASLMechanism:   {driver.Account, "set broker.kafka.sasl_mechanism to one that the broker offers, or enable it there"},
	sarama.ErrClusterAuthorizationFailed: {driver.Account, "grant the account DESCRIBE on the cluster, and CREATE unless you create the topics yourself"},
}

const (
	tooLarge     = "raise the topic's max.message.bytes and run `millrace refused retry`, or `millrace refused discard`"
	missingTopic = "create the topic, or grant the account CREATE on it"
	replicas     = "start the missing brokers, or lower the topic's min.insync.replicas"
)

// refusalOf returns the refusal in a sarama error about a topic, or nil if there is
// none.
func refusalOf(topic string, err error) *driver.RefusedError {
	if err == nil {
		return nil
	}

	if refused, ok := errors.AsType[*driver.RefusedError](err); ok {
		return refused
	}

	for code, r := range refusals { // sarama wraps some so that only Is finds them
		if errors.Is(err, code) {
			return &driver.RefusedError{Scope: r.scope, Topic: topic, Remedy: r.remedy, Err: code}
		}
	}

	if alert, ok := errors.AsType[*net.OpError](err); ok && alert.Op == "remote error" { // from package tls
		return &driver.RefusedError{
			Scope: driver.Account, Topic: topic,
			Remedy: "set broker.kafka.cert_file and broker.kafka.key_file to a valid certificate from an authority that the broker trusts",
			Err:    fmt.Errorf("TLS authentication failed: %w", alert),
		}
	}

	// sarama refuses these itself.
	if tooLong, ok := errors.AsType[sarama.ConfigurationError](err); ok {
		return &driver.RefusedError{Scope: driver.OneMessage, Topic: topic, Remedy: tooLarge, Err: tooLong}
	}

	if unencodable, ok := errors.AsType[sarama.PacketEncodingError](err); ok {
		return &driver.RefusedError{Scope: driver.OneMessage, Topic: topic, Remedy: "discard the message", Err: unencodable}
	}

	return nil
}
