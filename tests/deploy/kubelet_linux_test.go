package deploy

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/handoverd/handoverd/internal/leak"
	corev1 "k8s.io/api/core/v1"
	extensions "k8s.io/api/extensions/v1beta1"
)

// A node does with pods of the DaemonSet what the kubelet would do with them,
// through the engine: host network, the directory, the user and what it may,
// the environment, restarts, the probe.
type node struct {
	t    testing.TB
	name string
	dir  string // stands for the hostPath
	pod  *corev1.PodSpec
}

func newNode(t testing.TB) *node {
	t.Helper()
	leak.Check(t)
	imageTag(t)
	n := &node{t: t, name: uniqueName(), dir: filepath.Join(t.TempDir(), "app"), pod: &daemonSet(t).Spec.Template.Spec}
	// DirectoryOrCreate: for root, with mode 0755.
	if err := os.Mkdir(n.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return n
}

// run starts a pod as the controller makes it of a revision of the template,
// with more variables.
func (n *node) run(generation int, env ...string) *container {
	n.t.Helper()
	c := &n.pod.Containers[0]
	s := c.SecurityContext
	options := []string{
		"--network", "host", "--restart", "always",
		"--volume", n.dir + ":" + c.VolumeMounts[0].MountPath,
		"--user", strconv.FormatInt(*s.RunAsUser, 10) + ":" + strconv.FormatInt(*s.RunAsGroup, 10),
	}
	if *s.ReadOnlyRootFilesystem {
		options = append(options, "--read-only")
	}
	if !*s.AllowPrivilegeEscalation {
		options = append(options, "--security-opt", "no-new-privileges")
	}
	for _, capability := range s.Capabilities.Drop {
		options = append(options, "--cap-drop", string(capability))
	}
	for _, e := range c.Env {
		options = append(options, "--env", e.Name+"="+n.field(e.ValueFrom.FieldRef.FieldPath, generation))
	}
	for _, e := range env {
		options = append(options, "--env", e)
	}
	var args []string
	for _, a := range c.Args { // with another address, since the machine is shared
		args = append(args, strings.Replace(a, "tcp://:8080", "tcp://127.0.0.1:0", 1))
	}
	return start(n.t, n.name+"-"+strconv.Itoa(generation), options, args...)
}

// field is what the downward API gives.
func (n *node) field(path string, generation int) string {
	n.t.Helper()
	if m := fieldPath.FindStringSubmatch(path); m == nil || m[1] != extensions.DaemonSetTemplateGenerationKey {
		n.t.Fatalf("no value for %s", path)
	}
	return strconv.Itoa(generation)
}

// ready runs the readiness probe.
func (n *node) ready(c *container) bool {
	_, err := docker(append([]string{"exec", c.name}, n.pod.Containers[0].ReadinessProbe.Exec.Command...)...)
	return err == nil
}

// delete deletes a pod: SIGTERM, and SIGKILL after the grace period.
func (n *node) delete(c *container, want string) {
	n.t.Helper()
	mustDocker(n.t, "stop", "--time", strconv.FormatInt(*n.pod.TerminationGracePeriodSeconds, 10), c.name)
	if code := c.inspect("{{.State.ExitCode}}"); code != want {
		n.t.Errorf("pod %s ended with %s, want %s", c.name, code, want)
	}
	mustDocker(n.t, "rm", c.name)
}

// A rolling update with surge: the new pod is started, gets ready, and then the
// old one, parked by then, is deleted.
func TestDaemonSetPodsTakeOverFromEachOther(t *testing.T) {
	n := newNode(t)
	last := n.run(1)
	load := makeLoad(t, last.listening(), false)
	kept := makeLoad(t, last.listening(), true)
	updates := scale(3, 1)
	for generation := 2; generation <= updates+1; generation++ {
		next := n.run(generation)
		next.await("the new pod is ready", func() bool { return n.ready(next) })
		load.awaitMore(generation)
		last.awaitLog("msg=\"parked: ")
		if n.ready(last) || !n.ready(next) {
			t.Error("want the new pod ready, and the parked one not")
		}
		n.delete(last, "0")
		last = next
	}
	kept.awaitMore(updates + 1)
	load.wantPerfect(updates + 1)
	kept.wantPerfect(updates + 1)
	n.delete(last, "0")
	if left, err := os.ReadDir(n.dir); err != nil || len(left) > 0 {
		t.Errorf("left behind on the node: %v (%v)", left, err)
	}
}

// A new pod that crashes again and again, as long as it is on probation, costs
// what it has accepted; the old one takes back each time. An undo deletes the
// new one, and the old one is the only one as before.
func TestDaemonSetUndoOfAPodThatCrashes(t *testing.T) {
	n := newNode(t)
	old := n.run(1)
	load := makeLoad(t, old.listening(), false)
	bad := n.run(2, "HANDOVERD_PROBATION=30m")
	deaths := scale(3, 1)
	for i := range deaths {
		load.awaitMore(2 + i) // each has a number of its own
		bad.crash()
		old.await("the old pod takes back", func() bool { return strings.Count(old.logs(), "this generation serves on") > i })
	}
	load.awaitMore(2 + deaths)
	n.delete(bad, "6") // rolled back
	load.awaitMore(1)
	if !n.ready(old) || old.restarts() != 0 {
		t.Errorf("the old pod was restarted %d times, ready %t", old.restarts(), n.ready(old))
	}
	load.wantOnlyCut(deaths)
}
