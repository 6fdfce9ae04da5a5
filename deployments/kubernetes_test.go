// Package deployments tests the Kubernetes manifests. It is a module of its own, so that
// the product does not depend on Kubernetes.
package deployments

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	keda "github.com/kedacore/keda/v2/apis/keda/v1alpha1"
	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	apps "k8s.io/api/apps/v1"
	batch "k8s.io/api/batch/v1"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	disruption "k8s.io/api/policy/v1"
	security "k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"

	"github.com/millracehq/millrace/internal/config"
)

// overlays are the folders that are applied.
var overlays = []string{"kafka", "rabbitmq"}

// manifests are the objects of an overlay, by kind.
type manifests struct {
	namespace  *core.Namespace
	configMap  *core.ConfigMap
	service    *core.Service
	deployment *apps.Deployment
	migrate    *batch.Job
	upkeep     *batch.CronJob
	budget     *disruption.PodDisruptionBudget
	network    *networking.NetworkPolicy
	monitor    *monitoring.ServiceMonitor
	scaled     *keda.ScaledObject
}

// each calls a test for each overlay.
func each(t *testing.T, test func(t *testing.T, m manifests)) {
	t.Helper()

	for _, overlay := range overlays {
		t.Run(overlay, func(t *testing.T) { test(t, build(t, overlay)) })
	}
}

// build returns the manifests of an overlay, decoded strictly: an unknown field, an unknown
// kind or a second object of a kind fails the test.
func build(t *testing.T, overlay string) (m manifests) {
	t.Helper()

	objects, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), filepath.Join("kubernetes", overlay))
	if err != nil {
		t.Fatal(err)
	}

	targets := map[string]any{
		"v1/Namespace": &m.namespace, "v1/ConfigMap": &m.configMap, "v1/Service": &m.service, "apps/v1/Deployment": &m.deployment,
		"batch/v1/Job": &m.migrate, "batch/v1/CronJob": &m.upkeep, "policy/v1/PodDisruptionBudget": &m.budget,
		"networking.k8s.io/v1/NetworkPolicy": &m.network, "monitoring.coreos.com/v1/ServiceMonitor": &m.monitor,
		"keda.sh/v1alpha1/ScaledObject": &m.scaled,
	}

	for _, object := range objects.Resources() {
		gvk := object.GetGvk()
		kind := strings.TrimPrefix(gvk.ApiVersion()+"/"+gvk.Kind, "/")

		target, known := targets[kind]
		if !known {
			t.Fatalf("%s %s: unexpected, or the second of its kind", kind, object.GetName())
		}

		delete(targets, kind)

		text, err := object.AsYAML()
		if err != nil {
			t.Fatal(err)
		}

		if err := yaml.UnmarshalStrict(text, target); err != nil {
			t.Errorf("%s %s: %v", kind, object.GetName(), err)
		}

		if namespace := object.GetNamespace(); kind != "v1/Namespace" && namespace != "millrace" {
			t.Errorf("%s %s is in namespace %q", kind, object.GetName(), namespace)
		}
	}

	if len(targets) > 0 {
		t.Fatalf("%v are missing", slices.Sorted(maps.Keys(targets)))
	}

	return m
}

// pods returns all pod templates, by container name.
func (m manifests) pods() map[string]core.PodTemplateSpec {
	templates := map[string]core.PodTemplateSpec{}
	for _, template := range []core.PodTemplateSpec{m.deployment.Spec.Template, m.migrate.Spec.Template, m.upkeep.Spec.JobTemplate.Spec.Template} {
		templates[template.Spec.Containers[0].Name] = template
	}

	return templates
}

func TestPodsAreRestricted(t *testing.T) {
	each(t, func(t *testing.T, m manifests) {
		evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
		if err != nil {
			t.Fatal(err)
		}

		if len(m.pods()) != 3 {
			t.Fatalf("%d pods, expected 3", len(m.pods()))
		}

		for name, pod := range m.pods() {
			level := security.LevelVersion{Level: security.LevelRestricted, Version: security.LatestVersion()}
			result := policy.AggregateCheckResults(evaluator.EvaluatePod(level, &pod.ObjectMeta, &pod.Spec))

			if !result.Allowed {
				t.Errorf("%s: %s: %s", name, result.ForbiddenReason(), result.ForbiddenDetail())
			}

			container := pod.Spec.Containers[0]
			if context := container.SecurityContext; context.ReadOnlyRootFilesystem == nil || !*context.ReadOnlyRootFilesystem {
				t.Errorf("%s can write to its root", name)
			}

			if container.Image != "registry.example.com/millrace:latest" {
				t.Errorf("%s has the image %s, expected that of the overlay", name, container.Image)
			}

			if container.Resources.Limits.Memory().IsZero() || container.Resources.Requests.Cpu().IsZero() {
				t.Errorf("%s has no resources", name)
			}
		}

		if enforced := m.namespace.Labels["pod-security.kubernetes.io/enforce"]; enforced != "restricted" {
			t.Errorf("the namespace enforces %q", enforced)
		}
	})
}

// Every key and variable must be one that the service knows, with a valid value.
func TestConfigurationIsValid(t *testing.T) {
	each(t, func(t *testing.T, m manifests) {
		for name, pod := range m.pods() {
			t.Run(name, func(t *testing.T) {
				cfg := m.load(t, pod)

				if err := cfg.Validate(); err != nil {
					t.Error(err)
				}

				if err := cfg.Warn(); err != nil {
					t.Errorf("the service would warn: %v", err)
				}

				if serves := name == "millrace"; serves == cfg.Postgres.MigrateOnStart {
					t.Errorf("postgres.migrate_on_start is %t", cfg.Postgres.MigrateOnStart)
				}
			})
		}
	})
}

// secrets are the contents of the secrets, by key.
var secrets = map[string]string{
	"database-url":   "postgres://millrace:secret@db.example.com/millrace?sslmode=verify-full",
	"rabbitmq-url":   "amqps://millrace:secret@rabbitmq.example.com:5671/millrace",
	"kafka-password": "secret",
}

// load loads a pod's configuration from its files and variables, as the service does. The
// paths of mounted files are below a temporary folder.
func (m manifests) load(t *testing.T, pod core.PodTemplateSpec) config.Config {
	t.Helper()

	root, file := t.TempDir(), ""

	for _, mount := range pod.Spec.Containers[0].VolumeMounts {
		contents := secrets
		if volume := volumeOf(pod, mount.Name); volume.ConfigMap != nil {
			contents = m.configMap.Data

			if volume.ConfigMap.Name != m.configMap.Name {
				t.Errorf("the pod mounts the ConfigMap %s, which does not exist", volume.ConfigMap.Name)
			}
		}

		for name, content := range contents {
			path := filepath.Join(root, mount.MountPath, name)
			content = strings.ReplaceAll(content, "/run/secrets/", root+"/run/secrets/")

			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}

			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}

	args := pod.Spec.Containers[0].Args
	if at := slices.Index(args, "--config"); at >= 0 {
		file = root + args[at+1]
	}

	for _, variable := range pod.Spec.Containers[0].Env {
		t.Setenv(variable.Name, strings.ReplaceAll(variable.Value, "/run/secrets/", root+"/run/secrets/"))
	}

	t.Setenv("MILLRACE_HEALTH__ADDR", "0.0.0.0:9465") // as in the image

	cfg, err := config.Load(file, map[string]any{"notification.email.host": "mail.example.com"}) // without it, the service warns
	if err != nil {
		t.Fatal(err)
	}

	return cfg
}

func volumeOf(pod core.PodTemplateSpec, name string) core.Volume {
	at := slices.IndexFunc(pod.Spec.Volumes, func(v core.Volume) bool { return v.Name == name })
	if at < 0 {
		return core.Volume{}
	}

	return pod.Spec.Volumes[at]
}

func TestGracePeriodFitsTheDrain(t *testing.T) {
	each(t, func(t *testing.T, m manifests) {
		pod := m.deployment.Spec.Template
		cfg := m.load(t, pod)

		const closing = 2 * time.Second // docs/deploying.md

		sleep := time.Duration(pod.Spec.Containers[0].Lifecycle.PreStop.Sleep.Seconds) * time.Second
		grace := time.Duration(*pod.Spec.TerminationGracePeriodSeconds) * time.Second

		if need := sleep + cfg.Consumer.DrainTimeout + cfg.Outbox.DrainTimeout + closing; grace <= need {
			t.Errorf("the grace period is %s, expected more than %s", grace, need)
		}
	})
}

func TestProbesAskTheHealthListener(t *testing.T) {
	each(t, func(t *testing.T, m manifests) {
		container := m.deployment.Spec.Template.Spec.Containers[0]

		port := container.Ports[0]
		if port.Name != "health" || port.ContainerPort != 9465 {
			t.Errorf("the port is %+v, expected health, 9465", port)
		}

		for path, probe := range map[string]*core.Probe{
			"/livez": container.LivenessProbe, "/readyz": container.ReadinessProbe, "/startupz": container.StartupProbe,
		} {
			if probe == nil || probe.HTTPGet == nil || probe.HTTPGet.Path != path || probe.HTTPGet.Port.String() != "health" {
				t.Errorf("the probe for %s is %+v", path, probe)
			}
		}

		if target := m.service.Spec.Ports[0]; target.TargetPort.String() != "health" || m.monitor.Spec.Endpoints[0].Port != target.Name {
			t.Errorf("the service has the port %+v, and the monitor %q", target, m.monitor.Spec.Endpoints[0].Port)
		}
	})
}

// Everything that selects pods must select the Deployment's pods.
func TestSelectorsSelect(t *testing.T) {
	each(t, func(t *testing.T, m manifests) {
		pod := m.deployment.Spec.Template

		selectors := map[string]map[string]string{
			"Deployment": m.deployment.Spec.Selector.MatchLabels, "Service": m.service.Spec.Selector,
			"PodDisruptionBudget": m.budget.Spec.Selector.MatchLabels,
		}
		for _, constraint := range pod.Spec.TopologySpreadConstraints {
			selectors[constraint.TopologyKey] = constraint.LabelSelector.MatchLabels
		}

		if len(selectors) != 5 {
			t.Errorf("%d selectors, expected 5 with those of nodes and zones", len(selectors))
		}

		for name, selector := range selectors {
			if !within(selector, pod.Labels) {
				t.Errorf("%s selects %v, but the pods have %v", name, selector, pod.Labels)
			}
		}

		if selector := m.monitor.Spec.Selector.MatchLabels; !within(selector, m.service.Labels) {
			t.Errorf("the monitor selects %v, but the service has %v", selector, m.service.Labels)
		}

		for name, pod := range m.pods() {
			if !slices.Contains(m.network.Spec.PodSelector.MatchExpressions[0].Values, pod.Labels["app.kubernetes.io/name"]) {
				t.Errorf("the network policy does not select %s", name)
			}
		}
	})
}

func within(some, all map[string]string) bool {
	for key, value := range some {
		if all[key] != value {
			return false
		}
	}

	return len(some) > 0
}

func TestScaledByMetricsThatExist(t *testing.T) {
	page, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}

	each(t, func(t *testing.T, m manifests) {
		if target := m.scaled.Spec.ScaleTargetRef.Name; target != m.deployment.Name {
			t.Errorf("it scales %s", target)
		}

		if most := *m.scaled.Spec.MaxReplicaCount; int(most) > int(config.Default().Broker.Kafka.Partitions) {
			t.Errorf("at most %d replicas, but the topics have fewer partitions", most)
		}

		if len(m.scaled.Spec.Triggers) < 10 {
			t.Errorf("%d triggers, expected one for each topic", len(m.scaled.Spec.Triggers))
		}

		for _, trigger := range m.scaled.Spec.Triggers {
			metrics := regexp.MustCompile(`millrace_\w+`).FindAllString(trigger.Metadata["query"], -1)
			settings := slices.Sorted(maps.Keys(trigger.Metadata)) // free text for the API
			expected := []string{"ignoreNullValues", "query", "serverAddress", "threshold"}

			if len(metrics) == 0 || trigger.Type != "prometheus" || !slices.Equal(settings, expected) {
				t.Errorf("the trigger is %+v", trigger)
			}

			for _, metric := range metrics {
				if !strings.Contains(string(page), "\n| `"+metric+"` |") {
					t.Errorf("%s: there is no metric %s", trigger.Name, metric)
				}
			}
		}
	})
}
