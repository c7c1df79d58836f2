package deploy

import (
	"encoding/json"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	extensions "k8s.io/api/extensions/v1beta1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"
)

// daemonSet decodes the manifest strictly: a member that the API does not have,
// or that is there twice, is an error.
func daemonSet(t testing.TB) *appsv1.DaemonSet {
	t.Helper()
	text, err := os.ReadFile(deployed(t, "kubernetes/daemonset.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var ds appsv1.DaemonSet
	if err := yaml.UnmarshalStrict(text, &ds); err != nil {
		t.Fatal(err)
	}
	return &ds
}

// Nothing in the manifest is lost on its way through the types of the API: a
// value of the wrong type or in the wrong place would be.
func TestDaemonSetIsWhatTheAPIReads(t *testing.T) {
	text, err := os.ReadFile(deployed(t, "kubernetes/daemonset.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	ds := daemonSet(t)
	if ds.APIVersion != appsv1.SchemeGroupVersion.String() || ds.Kind != "DaemonSet" {
		t.Fatalf("%s %s", ds.APIVersion, ds.Kind)
	}
	out, err := json.Marshal(ds)
	if err != nil {
		t.Fatal(err)
	}
	var written, read map[string]any
	if err := yaml.Unmarshal(text, &written); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(out, &read); err != nil {
		t.Fatal(err)
	}
	if missing := lost(written, read, ""); len(missing) > 0 {
		t.Errorf("lost in decoding: %s", strings.Join(missing, ", "))
	}
}

// lost names what a has and b has not.
func lost(a, b any, at string) (missing []string) {
	switch a := a.(type) {
	case map[string]any:
		m, _ := b.(map[string]any)
		for k, v := range a {
			if _, ok := m[k]; !ok {
				missing = append(missing, at+"."+k)
				continue
			}
			missing = append(missing, lost(v, m[k], at+"."+k)...)
		}
	case []any:
		l, _ := b.([]any)
		if len(l) != len(a) {
			return []string{at}
		}
		for i := range a {
			missing = append(missing, lost(a[i], l[i], at+"[]")...)
		}
	default:
		if a != b {
			missing = append(missing, at)
		}
	}
	return missing
}

// A wrong manifest is found by the decoder that the tests rely on.
func TestStrictDecodingFindsMistakes(t *testing.T) {
	text, err := os.ReadFile(deployed(t, "kubernetes/daemonset.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string][2]string{
		"misspelt": {"maxSurge:", "maxsurges:"},
		"moved":    {"      hostNetwork: true\n", "      securityContext:\n        hostNetwork: true\n"},
		"twice":    {"      hostNetwork: true\n", "      hostNetwork: true\n      hostNetwork: true\n"},
		"a type":   {"terminationGracePeriodSeconds: 80", "terminationGracePeriodSeconds: 80s"},
	} {
		wrong := strings.Replace(string(text), change[0], change[1], 1)
		if wrong == string(text) {
			t.Fatalf("%s: %q is not there", name, change[0])
		}
		if err := yaml.UnmarshalStrict([]byte(wrong), new(appsv1.DaemonSet)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// What the manifest says goes together, as far as one can tell without a
// cluster.
func TestDaemonSetLetsTheNewPodRunBesideTheOld(t *testing.T) {
	ds := daemonSet(t)
	pod := &ds.Spec.Template.Spec
	selector, err := metav1.LabelSelectorAsSelector(ds.Spec.Selector)
	if err != nil || selector.Empty() || !selector.Matches(labels.Set(ds.Spec.Template.Labels)) {
		t.Errorf("selector %v does not select the pods (%v)", selector, err)
	}
	rolling := ds.Spec.UpdateStrategy.RollingUpdate
	if ds.Spec.UpdateStrategy.Type != appsv1.RollingUpdateDaemonSetStrategyType || rolling.MaxSurge.IntValue() != 1 || rolling.MaxUnavailable.IntValue() != 0 {
		t.Errorf("update strategy %+v, want the new pod first", ds.Spec.UpdateStrategy)
	}
	if !pod.HostNetwork || pod.HostPID {
		t.Error("want the node's network, in which the listeners stay alive, and pid namespaces of their own, by which health tells pods apart")
	}
	if pod.RestartPolicy != "" && pod.RestartPolicy != corev1.RestartPolicyAlways {
		t.Errorf("restart policy %s is refused in a DaemonSet", pod.RestartPolicy)
	}
	if len(pod.Containers) != 1 {
		t.Fatalf("%d containers", len(pod.Containers))
	}
	c := &pod.Containers[0]
	if len(c.Ports) != 0 {
		t.Error("ports are host ports here, of which a second pod gets none")
	}
	if c.LivenessProbe != nil || c.StartupProbe != nil {
		t.Error("a probe that kills kills parked pods")
	}
	probe := c.ReadinessProbe
	if probe == nil || probe.Exec == nil || strings.Join(probe.Exec.Command, " ") != "/handoverd health --serving" {
		t.Errorf("readiness probe %+v", probe)
	}
	wantTimes(t, ds, c)
	wantSharedDirectory(t, pod, c)
}

// wantTimes checks that the kubelet is patient enough.
func wantTimes(t *testing.T, ds *appsv1.DaemonSet, c *corev1.Container) {
	t.Helper()
	drain, kill := flagDuration(t, c, "drain-timeout"), flagDuration(t, c, "kill-timeout")
	if grace := time.Duration(*ds.Spec.Template.Spec.TerminationGracePeriodSeconds) * time.Second; grace <= drain+kill {
		t.Errorf("killed after %v, draining may take %v", grace, drain+kill)
	}
	const probation = 3 * time.Second // the default
	if ready := time.Duration(ds.Spec.MinReadySeconds) * time.Second; ready < 2*probation {
		t.Errorf("the old pod is deleted %v after the new one is ready; want more than its probation", ready)
	}
}

// flagDuration is the value of a flag of a container.
func flagDuration(t *testing.T, c *corev1.Container, name string) time.Duration {
	t.Helper()
	for _, arg := range c.Args {
		if v, ok := strings.CutPrefix(arg, "--"+name+"="); ok {
			d, err := time.ParseDuration(v)
			if err != nil {
				t.Fatal(err)
			}
			return d
		}
	}
	t.Fatalf("no --%s in %q", name, c.Args)
	return 0
}

// wantSharedDirectory checks that the pods of a node have one directory.
func wantSharedDirectory(t *testing.T, pod *corev1.PodSpec, c *corev1.Container) {
	t.Helper()
	if len(pod.Volumes) != 1 || len(c.VolumeMounts) != 1 || pod.Volumes[0].Name != c.VolumeMounts[0].Name {
		t.Fatalf("volumes %+v, mounts %+v", pod.Volumes, c.VolumeMounts)
	}
	source, mount := pod.Volumes[0].HostPath, c.VolumeMounts[0]
	if source == nil || source.Type == nil || *source.Type != corev1.HostPathDirectoryOrCreate {
		t.Errorf("volume %+v, want a directory of the node", pod.Volumes[0])
	}
	// Where the image expects the control socket.
	if mount.MountPath != "/run/handoverd" || mount.SubPath != "" || mount.ReadOnly {
		t.Errorf("mount %+v", mount)
	}
}

var fieldPath = regexp.MustCompile(`^metadata\.labels\['([a-z-]+)'\]$`)

// The revision comes from the label that the DaemonSet controller writes on
// each pod, which is not in the template.
func TestDaemonSetTellsTheRevisionByALabelOfTheController(t *testing.T) {
	ds := daemonSet(t)
	env := ds.Spec.Template.Spec.Containers[0].Env
	if len(env) != 1 || env[0].Name != "HANDOVERD_REVISION" || env[0].ValueFrom == nil || env[0].ValueFrom.FieldRef == nil {
		t.Fatalf("environment %+v", env)
	}
	label := fieldPath.FindStringSubmatch(env[0].ValueFrom.FieldRef.FieldPath)
	if label == nil || label[1] != extensions.DaemonSetTemplateGenerationKey {
		t.Errorf("field %q, want the label %s", env[0].ValueFrom.FieldRef.FieldPath, extensions.DaemonSetTemplateGenerationKey)
	}
	if _, ok := ds.Spec.Template.Labels[extensions.DaemonSetTemplateGenerationKey]; ok {
		t.Error("the template sets the controller's label")
	}
}
