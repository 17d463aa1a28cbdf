"""The closed list of reasons. Scripts match on them: add where a case is missing, never write a free-form reason."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Why an object, a candidate or a revision is in the state it is in."""

    # OptimizedModel: faults
    SOURCE_NOT_FOUND = "SourceNotFound"
    DIGEST_MISMATCH = "DigestMismatch"
    SOURCE_CORRUPTED = "SourceCorrupted"
    UNSAFE_PICKLE = "UnsafePickle"
    UNSAFE_CODE = "UnsafeCode"
    UNSUPPORTED_FORMAT = "UnsupportedFormat"
    UNSUPPORTED_OPERATOR = "UnsupportedOperator"
    UNSUPPORTED_OPSET = "UnsupportedOpset"
    UNSUPPORTED_MODEL = "UnsupportedModel"
    NUMERICAL_MISMATCH = "NumericalMismatch"
    DATA_NOT_FOUND = "DataNotFound"
    DATA_INVALID = "DataInvalid"
    CALIBRATION_TOO_SMALL = "CalibrationTooSmall"
    EVALUATION_DATA_MISSING = "EvaluationDataMissing"
    EVALUATION_TOO_SMALL = "EvaluationTooSmall"
    RECIPE_NOT_APPLICABLE = "RecipeNotApplicable"
    OUTPUTS_INVALID = "OutputsInvalid"
    NOT_FASTER = "NotFaster"
    MEASUREMENT_UNSTABLE = "MeasurementUnstable"
    UNSCHEDULABLE = "Unschedulable"
    OUT_OF_MEMORY = "OutOfMemory"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    NODE_LOST = "NodeLost"
    STORE_NOT_FOUND = "StoreNotFound"
    STORE_NOT_SHARED = "StoreNotShared"
    STORE_FULL = "StoreFull"
    STORE_UNREACHABLE = "StoreUnreachable"
    FORBIDDEN = "Forbidden"
    QUOTA_EXCEEDED = "QuotaExceeded"
    CONSTRAINTS_NOT_MET = "ConstraintsNotMet"
    JOB_FAILED = "JobFailed"
    IMAGE_PULL_FAILED = "ImagePullFailed"

    # ModelDeployment: faults
    MODEL_NOT_READY = "ModelNotReady"
    ARTIFACT_NOT_FOUND = "ArtifactNotFound"
    ARTIFACT_TAMPERED = "ArtifactTampered"
    NODE_INCOMPATIBLE = "NodeIncompatible"
    SIGNATURE_INCOMPATIBLE = "SignatureIncompatible"
    MODEL_LOAD_FAILED = "ModelLoadFailed"
    PROGRESS_DEADLINE_EXCEEDED = "ProgressDeadlineExceeded"
    ANALYSIS_FAILED = "AnalysisFailed"
    ANALYSIS_INCONCLUSIVE = "AnalysisInconclusive"
    ANALYSIS_UNREACHABLE = "AnalysisUnreachable"
    NAME_CONFLICT = "NameConflict"

    # both
    CLUSTER_UNREACHABLE = "ClusterUnreachable"
    INVALID_SPEC = "InvalidSpec"

    # OptimizedModel: not faults
    PREPARING = "Preparing"
    OPTIMIZING = "Optimizing"
    MEASURING = "Measuring"
    PUBLISHING = "Publishing"
    PUBLISHED = "Published"

    # a condition that holds
    COMPLETED = "Completed"

    # candidates: not faults
    NOT_PREFERRED = "NotPreferred"
    PRUNED = "Pruned"

    # ModelDeployment: not faults
    DEPLOYING = "Deploying"
    SERVING = "Serving"
    CANARY_RUNNING = "CanaryRunning"
    WAITING_FOR_PROMOTE = "WaitingForPromote"
    PAUSED_BY_USER = "PausedByUser"
    PROMOTING = "Promoting"
    COMMAND_ACCEPTED = "CommandAccepted"
    COMMAND_REFUSED = "CommandRefused"

    # why a revision left (AnalysisFailed too)
    SUPERSEDED = "Superseded"
    ABORTED = "Aborted"
    ROLLED_BACK = "RolledBack"
